"""Read, resize and write video files and folders of images."""
