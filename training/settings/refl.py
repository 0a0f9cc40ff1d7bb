"""The settings that only reward feedback learning has; the others are in `settings.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ...core.errors import RealignError
from .common import TrainingConfig
from .kinds import AT_LEAST_0, AT_LEAST_1, Range


@dataclass(frozen=True, kw_only=True)
class ReflConfig(TrainingConfig):
    """Reward feedback learning: L_total = λ·φ(R) + L_pre (eq. 5), R the caption reward or another.

    The defaults are the paper's; "open" says that the paper gives no value. Paths are relative to the working folder.
    """

    output: str = "out/refl"
    """The folder that the run writes: weights, samples, logs, checkpoints."""
    reward: str = "caption"
    """What is rewarded: caption, R_cap = cos(f_enc(caption), f_enc(prompt)) (eq. 4); clip, negclip, blip-itm, blip-itc
    or image-reward; or several, each with its weight: "caption, clip=0.5". The reward sam has no gradient: arl_train.py
    learns from it."""

    # Feedback
    schedule: Literal["steps", "timesteps"] = "steps"
    """Along what the weight of a reward such as "clip=0.8..0.2" goes from its first to its second value. steps: from
    the first step of the training to the last. timesteps: with the step of the rollout at which the gradient enters,
    from pure noise to the last. Paper: open."""
    estimator: Literal["score_function", "prompt_likelihood", "straight_through"] = "score_function"
    """How R_cap, which goes through a discrete caption, gets a gradient. score_function: from sampled captions,
    unbiased. prompt_likelihood: the captioner's log p(prompt | image) instead, least noisy. straight_through: the
    captioner's mean word. The reward that is logged is always R_cap. Paper: open."""
    samples_per_image: Annotated[int, AT_LEAST_1] = 4
    """K, the captions sampled for each image by score_function: at least 1, and there 2. Paper: open."""
    margin: float = 1.0
    """φ(R) = ReLU(margin − R): an image whose reward reaches the margin gives no gradient. A cosine is at most 1, so
    with 1 every image does. Paper: open."""
    reward_weight: Annotated[float, AT_LEAST_0] = 1e-3
    """λ, the weight of φ(R_cap), at least 0. Paper: 1e-3."""

    # Where the gradient enters
    judged: Literal["predicted", "finished"] = "predicted"
    """The image that is judged. predicted: what one step predicts, x_t → x_0' (ReFL, the paper). finished: what all
    steps end with; the gradient goes to `gradient_steps` of them, and not through what the UNet reads (DRTune, arXiv
    2405.00760), so that early steps, whose own predictions are blurred, learn from a sharp image."""
    gradient_steps: Annotated[int, AT_LEAST_1] = 1
    """The steps of a rollout that get a gradient, at least 1, and 1 where the image is predicted. Paper: 1."""
    first_gradient_step: Annotated[int, AT_LEAST_0] = 30
    """The gradient enters at random steps, the same for a batch: the first that it may be, counted from 0 (pure noise),
    at least 0. Paper: 30."""
    last_gradient_step: Annotated[int, AT_LEAST_0] = 49
    """The last step that it may be, at least 0 and below `rollout_steps`. Paper: 49, the last."""

    # Prior preservation
    prior_weight: Annotated[float, AT_LEAST_0] = 1.0
    """The weight of L_pre, the denoising loss that keeps the model what it was, at least 0. Paper: 1."""
    prior: str = "frozen"
    """The images of L_pre: "frozen", sampled once from the untrained model, or a folder of image files, each beside a
    .txt file with its caption. They are turned as their EXIF says, and what is transparent becomes white. Paper:
    open."""
    prior_batch_size: Annotated[int, AT_LEAST_0] = 0
    """The pairs of one pass of L_pre on one device, at least 0; 0 is `batch_size`. A pair costs far less than an image
    to judge, which has to be sampled."""
    prior_images: Annotated[int, AT_LEAST_1] = 1000
    """How many images are sampled for "frozen", at least 1."""
    prior_steps: Annotated[int, Range(1, 1000)] = 50
    """The denoising steps with which they are sampled, from 1 to 1000; guided as `cfg` says."""
    prior_captions: Literal["prompt", "captioner"] = "prompt"
    """What a sampled image of "frozen" is paired with: the prompt that it was sampled for, or what the captioner says,
    so that the pair is right even where the model mixed things up."""
    prior_keep: Annotated[float, Range(0, 1, above=True)] = 1.0
    """The share of the images of "frozen" that is learnt from, above 0 and at most 1: those whose words the captioner
    finds likeliest, so that images which it is unsure of are left out. Paper: open."""
    prior_min_timestep: Annotated[int, Range(0, 999)] = 0
    """The lowest of L_pre's noise levels, from 0 to 999; 999 is all noise. What goes where is decided at high ones; at
    low ones the loss is larger, and nearly the same whatever the words. Paper: open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prior.strip():
            raise RealignError("prior is empty; give a path, or frozen.")
        if self.estimator == "score_function" and self.samples_per_image < 2:
            raise RealignError(
                "samples_per_image is 1; score_function compares captions of one image, so give at least 2."
            )
        if not self.reward_weight and not self.prior_weight:
            raise RealignError("reward_weight and prior_weight are both 0, which trains nothing; raise one of them.")
        if not self.first_gradient_step <= self.last_gradient_step < self.rollout_steps:
            raise RealignError(
                f"first_gradient_step is {self.first_gradient_step}, last_gradient_step {self.last_gradient_step} and "
                f"rollout_steps {self.rollout_steps}; the first must not come after the last, nor the last after step "
                f"{self.rollout_steps - 1}."
            )
        window = self.last_gradient_step - self.first_gradient_step + 1
        if self.gradient_steps > (window if self.judged == "finished" else 1):
            raise RealignError(
                f"gradient_steps is {self.gradient_steps}; give at most 1 where judged is predicted, and at most "
                f"{window} from step {self.first_gradient_step} to {self.last_gradient_step}."
            )
