"""Files in the layouts that the models' authors publish, with weights from seeds, at full size or small."""
