"""The search of a stage after the other: who proposes, who decides, who runs, and what is handed on."""
