"""Is the noise of some rows that of the whole batch?"""

import pytest
import torch

from vae_lib.noise import Rows, Share, normal, uniform


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize(("shape", "axis"), [((7, 3), -2), ((2, 7, 3), -2), ((7, 2, 2), 0)])
def test_rows_are_those_of_the_whole(draw, shape, axis):
    def seeded():
        return torch.Generator().manual_seed(5)

    like = torch.zeros(0, dtype=torch.float64)
    whole = draw(shape, seeded(), like=like, axis=axis)
    parts = []
    for rank in range(3):
        rows = Share(rank, 3).rows(7)
        part = [*shape]
        part[axis] = rows.stop - rows.start
        parts.append(draw(part, Rows(seeded(), 7, rows), like=like, axis=axis))
    assert whole.dtype == torch.float64
    assert torch.equal(torch.cat(parts, axis), whole)


def test_noise_that_is_not_for_its_rows_is_refused():
    rows = Rows(torch.Generator(), 10, slice(0, 4))
    for shape in [(5, 3), (3,), ()]:
        with pytest.raises(ValueError, match="generator: expected to draw for the 4 images"):
            normal(shape, rows, like=torch.zeros(0))
    with pytest.raises(TypeError):
        torch.randn(4, 3, generator=rows)
    with pytest.raises(ValueError, match="generator: expected a torch"):
        normal((4, 3), 3, like=torch.zeros(0))
