"""Video files and folders of images: reading, fitting to a size, writing."""
