"""The models that look at an image, each with its pre- and postprocessing.

    tagger.py         RAM, RAM++: images → tags (labels.py: tags of one's own choice)
    captioner.py      BLIP-2: images → captions
    detector.py       GroundingDINO: images, phrases → boxes with scores
    segmenter.py      SAM, SAM 2: images, boxes → masks
    grounded_sam.py   detector and segmenter in a row: regions → the same regions with boxes and masks
    text_encoder.py   BLIP-2's text tower: texts → vectors

Each class has a `load` that reads it from a local file or folder. Images are [B, H, W, 3] in [0, 1].
A wrong file and an option out of its range are a RealignError.
"""
