"""Trained weights in files that ComfyUI reads.

    state_dicts.py    a UNet's adapter, or all of its weights, as named tensors
    ldm_keys.py       diffusers' names of a UNet's weights → those of Stable Diffusion's own files
    metadata.py       the file's header: the base model and the training run
    export.py         the file itself: save_lora, save_unet, rewrite
    loading.py        a LoRA or UNet file into a UNet, for evaluation without ComfyUI

Training writes LoRAs in kohya's layout and UNets in LDM's. Reading accepts others too. A
UNet or a file that does not fit is a RealignError.
"""
