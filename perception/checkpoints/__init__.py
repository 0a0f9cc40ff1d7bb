"""Single files of weights as their authors published them, read safely into the classes that `perception` uses."""
