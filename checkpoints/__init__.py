"""Published weights → the model classes that run them. Nothing is fetched, and no code in a file is ever run.

A file that is missing, damaged, unsafe or another model's is a RealignError, whose message says what to do.

A single file of weights passes through these modules, in this order:

    files.py          which file a path names, and how it is read: safetensors or pickle
    pickle_scan.py    what a pickle would import, read from its instructions without running it
    unpickling.py     the pickle's content, by torch's restricted reader
    unwrapping.py     which of that content are the weights, and which prefixes to strip from their names
    values.py         checks: plain, finite, floating point numbers; float8 becomes float32
    kinds.py          which model the names belong to, and the error for the wrong one
    sam.py, grounding_dino.py, ram.py, open_clip.py, image_reward.py
                      one published model each: its tensor names and sizes → those of the class that runs it
    names.py          what these share: renaming tensors, counting layers
    filling.py        the tensors into the model, each of them accounted for
    tokenizers.py     the tokenizer that such a file lacks

A Hugging Face folder is checked by folder_checks.py, then read by folders.py. networks/ holds RAM's and Swin's
architectures, for which transformers has no class.
"""
