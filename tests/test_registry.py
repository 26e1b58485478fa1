"""What a compiled program looked up by name is looked up again once the name changes hands."""

import jax

from ic_jax.registry import Registry


def test_a_name_that_changes_hands_is_compiled_anew():
    table, traced = Registry(one=1), []

    @jax.jit
    def looked_up(x):
        traced.append(table["one"])
        return table["one"] * x

    assert looked_up(2) == looked_up(2) == 2
    table["two"] = 2  # an addition is nobody's change
    assert looked_up(2) == 2 and traced == [1]
    table["one"] = 3
    assert looked_up(2) == 6
    del table["one"]
    table["one"] = 5
    assert looked_up(2) == 10 and traced == [1, 3, 5]
