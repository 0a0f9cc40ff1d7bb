"""Models as their authors published them, read from local files and folders into the classes that run them."""
