"""What Python lets a user choose that the command line's types would not."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, tiny_context

from ic_jax.choices import check
from ic_jax.director import check_seed
from ic_jax.errors import InputError
from ic_jax.expert import check_context
from ic_jax.settings import Settings


def unchecked(**chosen):
    """As where nothing checks types at run time, which these tests have done."""
    settings = Settings()
    for name, value in chosen.items():
        object.__setattr__(settings, name, value)
    return settings


@pytest.mark.parametrize(
    "chosen, said",
    [
        ({"steps": 2.0}, "--steps is 2.0; give a whole number from 1 to 1000"),
        ({"reuse": None}, "--reuse is None; give a whole number from 0"),
        ({"guidance_scale": jnp.float32(2)}, "--guidance-scale is 2.0; give a number from 0"),
        ({"renoise": float("nan")}, "--renoise is nan; give a number from 0 to 1"),
        ({"consistency": None}, "unknown --consistency None; one of none, dds"),
        ({"solver": "heun"}, "unknown --solver 'heun'; one of euler"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(chosen, said):
    with pytest.raises(InputError, match=f"^{said}"):
        check(unchecked(**chosen))


def test_numpys_numbers_are_numbers():
    check(unchecked(steps=np.int64(3), guidance_scale=np.float32(2)))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_no_seed_stands_for_another(seed):
    with pytest.raises(InputError, match="give a number from 0 to"):
        check_seed(seed)


def test_a_context_is_of_two_prompts_that_the_model_can_read():
    context = tiny_context()
    check_context(context, TINY)
    check_context(context[:, :1], TINY)
    shorter = replace(TINY, dit=replace(TINY.dit, text_len=context.shape[1] - 1))
    cases = [(context[:1], TINY), (context[0], TINY), (context[..., 1:], TINY), (context, shorter)]
    for given, sizes in [*cases, (jnp.concatenate([context, context[:1]]), TINY)]:
        with pytest.raises(InputError, match=r"give \(2, up to .* \[negative prompt, prompt\]"):
            check_context(given, sizes)
