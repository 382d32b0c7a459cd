"""DML (Zhang et al., "Deep Mutual Learning", 2018): student and teacher start together and teach each other."""

from distill.baselines.soft_logits import softened_kl
from distill.method import Method


def make() -> Method:
    """Half the sum of both divergences between the two networks' predictions (the toolbox's form)."""

    def loss(modules, adapters, student, knowledge, labels):
        both = softened_kl(student.logits, knowledge) + softened_kl(knowledge, student.logits)
        return {"mutual": both / 2}, adapters.state

    return Method(loss, knowledge=lambda teacher: teacher.logits, mutual=True)
