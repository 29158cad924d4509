"""The training loop, on regressions small enough to work out."""

import math

import pytest
import torch
from torch import nn

from raypipe.data.batches import TrainBatch
from raypipe.data.windows import Sampler
from raypipe.training.loop import DivergedError, Schedule, fit, make_optimizer

WEIGHT, BIAS = torch.tensor([[1.5, -2.0, 0.5]]), torch.tensor([0.25])


class Regression:
    """y = W x + b from rows (x, y)."""

    def __init__(self):
        torch.manual_seed(1)
        self.module = nn.Linear(3, 1)

    def loss(self, batch):
        return (self.module(batch.data[:, :3]) - batch.data[:, 3:]).square().mean()


class Told:
    """A loss that the batch says, whatever the weights; `gradient` is the weights' gradient."""

    def __init__(self, gradient=(0.0, 0.0)):
        self.module = nn.ParameterList([nn.Parameter(torch.zeros(2))])
        self.gradient = torch.tensor(gradient)

    def loss(self, batch):
        weights = self.module[0]
        return batch.data.mean() + (weights * self.gradient).sum() - (weights.detach() * self.gradient).sum()


def whole(data, step):
    """One rank's batch that is the global one."""
    return TrainBatch(data, torch.zeros(len(data), dtype=torch.long), len(data), 0, step)


def rows(step, count=16):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(step))
    return whole(torch.cat([x, x @ WEIGHT.T + BIAS], 1), step)


def said(values):
    """Batches whose loss is values(step)."""
    return lambda step: whole(torch.tensor([[float(values(step))]]), step)


def run(task, batches, schedule, **more):
    reports = []
    optimizer = more.pop("optimizer", None) or make_optimizer(task.module, schedule)
    fit(task, batches, schedule, reports.append, optimizer=optimizer, **more)
    return reports


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.0)  # fit sets the rate


def test_cosine_rate():
    rate = Schedule(104, 2.0, warmup_steps=4).rate
    assert [rate(step) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rate(29) == pytest.approx(1 + math.sqrt(0.5))  # a quarter of the way: cos 45 degrees
    assert rate(54) == pytest.approx(1.0)
    assert rate(104) == pytest.approx(0.0, abs=1e-12)
    assert rate(500) == pytest.approx(0.0, abs=1e-12)
    assert all(rate(step) > rate(step + 1) for step in range(4, 104))


def test_square_root_rate():
    rate = Schedule(10_000, 2.0, warmup_steps=100, kind="sqrt").rate
    assert rate(0) == pytest.approx(0.02)
    assert rate(99) == rate(100) == pytest.approx(2.0)
    assert rate(7525) == pytest.approx(2 * (0.001 + 0.999 * 0.5))  # a quarter of the steps is left
    assert rate(10_000) == rate(20_000) == pytest.approx(0.002)


def test_rate_without_warm_up():
    assert Schedule(10, 2.0).rate(0) == 2.0
    assert Schedule(10, 2.0, kind="sqrt").rate(0) == 2.0
    assert Schedule(10, 2.0, kind="sqrt").rate(5) == pytest.approx(2 * (0.001 + 0.999 * math.sqrt(0.5)))


def test_a_regression_is_learnt():
    task = Regression()
    reports = run(task, rows, Schedule(300, 0.05, warmup_steps=10), every=100)
    torch.testing.assert_close(task.module.weight.data, WEIGHT, atol=0.01, rtol=0)
    torch.testing.assert_close(task.module.bias.data, BIAS, atol=0.01, rtol=0)
    assert reports[-1].loss < 0.01 * reports[0].loss


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0, 23, [5, 10, 15, 20, 23]), (7, 15, [10, 15]), (10, 11, [11]), (0, None, [5, 10, 12]), (12, 12, [])],
)
def test_reports_come_at_multiples_and_at_the_end(start, stop, expected):
    reports = run(Told(), said(lambda step: 0), Schedule(12, 0.1), start=start, stop=stop, every=5)
    assert [progress.step for progress in reports] == expected


def test_a_report_is_the_mean_since_the_last():
    schedule = Schedule(20, 0.1, warmup_steps=4)
    reports = run(Told((3.0, 4.0)), said(lambda step: step), schedule, start=5, stop=12, every=5)
    assert [progress.loss for progress in reports] == pytest.approx([7.0, 10.5])  # of 5..9, of 10 and 11
    assert [progress.grad_norm for progress in reports] == pytest.approx([5.0, 5.0])  # before clipping
    assert [progress.learning_rate for progress in reports] == [schedule.rate(9), schedule.rate(11)]
    assert all(progress.windows_per_second > 0 for progress in reports)


def test_each_step_takes_its_rate():
    task = Told((1.0, 0.0))
    run(task, said(lambda step: 0), Schedule(100, 0.4, warmup_steps=4), stop=3, optimizer=sgd(task.module))
    assert task.module[0].tolist() == pytest.approx([-(0.1 + 0.2 + 0.3), 0.0])


@pytest.mark.parametrize(("clip", "moved"), [(0.5, (0.3, 0.4)), (1e9, (30.0, 40.0)), (50.0, (30.0, 40.0))])
def test_gradients_are_clipped_to_their_norm(clip, moved):
    task = Told((30.0, 40.0))
    run(task, said(lambda step: 0), Schedule(9, 1.0, clip_norm=clip), stop=1, optimizer=sgd(task.module))
    assert task.module[0].tolist() == pytest.approx([-m for m in moved], rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_training():
    task, reports = Told(), []
    schedule = Schedule(20, 0.1)
    with pytest.raises(DivergedError, match=r"nan by step 10.*learning rate"):
        fit(
            task,
            said(lambda step: math.nan if step == 6 else 1.0),
            schedule,
            reports.append,
            optimizer=make_optimizer(task.module, schedule),
            every=5,
        )
    assert [progress.step for progress in reports] == [5]
    with pytest.raises(DivergedError, match="inf"):
        run(Told(), said(lambda step: math.inf), schedule, every=5)


def test_the_module_trains_even_if_a_report_left_it_in_eval_mode():
    task, modes = Regression(), []
    task.module.eval()

    def batches(step):
        modes.append(task.module.training)
        return rows(step)

    schedule = Schedule(6, 0.1)
    optimizer = make_optimizer(task.module, schedule)
    fit(task, batches, schedule, lambda progress: task.module.eval(), optimizer=optimizer, every=2)
    assert modes == [True] * 6


def test_frozen_weights_stay():
    task = Regression()
    task.module.bias.requires_grad_(False)
    before = task.module.bias.clone()
    run(task, rows, Schedule(5, 0.1, weight_decay=0.1))
    assert torch.equal(task.module.bias, before)


@pytest.mark.parametrize("parts", [2, 3, 7, 20])
def test_parts_of_a_batch_add_up_to_its_gradient(parts):
    """Seven windows do not divide evenly, and cannot be more than seven parts."""

    def moved(accumulate):
        task = Regression()
        before = [p.detach().clone() for p in task.module.parameters()]
        schedule = Schedule(100, 1.0, clip_norm=1e9, accumulate=accumulate)
        (report,) = run(task, lambda step: rows(step, 7), schedule, optimizer=sgd(task.module), stop=1)
        return report, torch.cat([(p - b).flatten() for p, b in zip(task.module.parameters(), before, strict=True)])

    (whole, expected), (report, found) = moved(1), moved(parts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert (report.loss, report.grad_norm) == pytest.approx((whole.loss, whole.grad_norm), rel=1e-5)


def test_parts_know_their_place_in_the_global_batch():
    task, seen = Regression(), []
    loss = task.loss

    def told(batch):
        seen.append((batch.offset, batch.data.clone(), batch.clips.tolist(), batch.total, batch.step))
        return loss(batch)

    task.loss = told
    data = rows(0, 5).data
    batch = TrainBatch(data, torch.arange(5), 16, 8, 3)  # what rank 1 of 2 may have
    run(task, lambda step: batch, Schedule(9, 0.1, accumulate=2), start=3, stop=4)
    assert [(offset, total, step) for offset, _, _, total, step in seen] == [(8, 16, 3), (10, 16, 3)]
    assert torch.equal(torch.cat([part for _, part, *_ in seen]), data)
    assert [clips for _, _, clips, *_ in seen] == [[0, 1], [2, 3, 4]]


def test_gradients_are_not_clipped_where_that_is_off():
    task = Told((30.0, 40.0))
    run(task, said(lambda step: 0), Schedule(9, 1.0, clip_norm=None), stop=1, optimizer=sgd(task.module))
    assert task.module[0].tolist() == [-30.0, -40.0]


@pytest.mark.parametrize("step", [0, 1, 2, 5])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_make_the_gradient_of_the_whole_batch(step, world):
    """With rate 1 and plain descent a step moves the weights by the gradient; ranks' gradients are averaged by DDP."""
    everything = rows(123, 20).data  # 20 windows, batches of 6: the third of an epoch takes 8, in unequal parts
    schedule = Schedule(100, 1.0, kind="sqrt", warmup_steps=100, clip_norm=1e9)

    def moved(rank, of):
        task = Regression()
        before = [p.detach().clone() for p in task.module.parameters()]
        sampler = Sampler(20, 6, seed=3, rank=rank, world_size=of)

        def batches(at):
            part = sampler.batch(at)
            chosen = everything[torch.from_numpy(part.windows)]
            sizes.append(len(chosen))
            return TrainBatch(chosen, torch.zeros(len(chosen)), part.total, part.offset, at)

        run(task, batches, schedule, optimizer=sgd(task.module), start=step, stop=step + 1, world_size=of)
        return torch.cat([(p - b).flatten() for p, b in zip(task.module.parameters(), before, strict=True)])

    sizes = []
    alone = moved(0, 1)
    apart = torch.stack([moved(rank, world) for rank in range(world)]).mean(0)
    assert sizes[0] == sum(sizes[1:]) == (8 if step % 3 == 2 else 6)
    torch.testing.assert_close(apart, alone, rtol=1e-5, atol=1e-8)
    assert alone.norm() > 0
