"""Small files in the layouts that the models' authors publish, with weights from seeds."""
