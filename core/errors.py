"""The exceptions users see: one, and a special case of it."""


class RealignError(ValueError):
    """Bad input, told in one sentence: what is wrong, with which value, and how to mend it."""


class NoAnswer(RealignError):
    """A language model cannot be asked, and the offline scorer may answer in its place."""
