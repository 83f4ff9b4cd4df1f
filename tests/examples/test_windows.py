"""The training stream: every file once an epoch, held-out files never, the same for the same seed."""

import pytest
import torch

from examples.code_licences.corpus import Corpus, SourceFile
from examples.code_licences.model import PADDING, ByteGPT, GPTConfig, per_example_loss
from examples.code_licences.windows import CorpusTooSmallError, Windows


def file(name, content, held_out=False):
    return SourceFile(
        id=name,
        package="sample",
        license="MIT",
        expression="MIT",
        sha256="",
        lines=1,
        bytes=len(content),
        entropy=4.0,
        vendored=False,
        generated=False,
        near_duplicate=False,
        duplicate_of=None,
        held_out=held_out,
    )


@pytest.fixture
def corpus():
    contents = tuple(bytes(range(97, 97 + 20)) * (1 + i) for i in range(7))
    return Corpus(tuple(file(f"f{i}", c, held_out=i == 3) for i, c in enumerate(contents)), contents)


def test_an_epoch_visits_every_training_file_once(corpus):
    batches = list(Windows(corpus, context=8, batch=2, seed=1).epoch(0))
    ids = [example["id"] for batch in batches for example in batch.examples]
    assert sorted(ids) == ["f0", "f1", "f2", "f4", "f5", "f6"]


def test_targets_are_the_inputs_one_byte_on(corpus):
    for batch in Windows(corpus, context=8, batch=3, seed=1).epoch(0):
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        for example, window in zip(batch.examples, batch.inputs, strict=True):
            content = corpus.contents[int(example["id"][1:])]
            assert bytes(window.tolist()) in content


def test_a_short_file_is_padded_and_its_padding_costs_nothing():
    short = Corpus((file("short", b"abc"),), (b"abc",))
    (batch,) = Windows(short, context=6, batch=1).epoch(0)
    assert batch.targets.tolist() == [[98, 99, *[PADDING] * 4]]
    logits = torch.zeros(1, 6, 256)
    logits[:, 2:] = torch.randn(1, 4, 256, generator=torch.Generator().manual_seed(0))
    assert per_example_loss(logits, batch.targets).item() == pytest.approx(torch.tensor(256.0).log().item())


def test_the_same_seed_gives_the_same_stream_and_epochs_differ(corpus):
    def ids(seed, epoch):
        windows = Windows(corpus, context=8, batch=2, seed=seed)
        return [(e["id"], b.inputs.tolist()) for b in windows.epoch(epoch) for e in b.examples]

    assert ids(1, 0) == ids(1, 0)
    assert ids(1, 0) != ids(1, 1)
    assert ids(1, 0) != ids(2, 0)


def test_held_out_windows_cover_the_held_out_files_from_end_to_end(corpus):
    batches = list(Windows(corpus, context=8, batch=2).held_out(windows_per_file=3))
    assert {example["id"] for batch in batches for example in batch.examples} == {"f3"}
    starts = torch.cat([batch.inputs[:, 0] for batch in batches]).tolist()
    last = torch.cat([batch.targets[:, -1] for batch in batches]).tolist()[-1]
    assert starts[0] == corpus.contents[3][0]
    assert last == corpus.contents[3][-1]


def test_too_few_files_for_a_batch_are_refused(corpus):
    with pytest.raises(CorpusTooSmallError, match="6 training files"):
        Windows(corpus, context=8, batch=7)


def test_a_position_sees_no_later_byte():
    torch.manual_seed(0)
    model = ByteGPT(GPTConfig(layers=2, width=16, heads=2, context=8)).double()
    first = torch.randint(0, 256, (1, 8))
    second = first.clone()
    second[0, 5] = (second[0, 5] + 1) % 256
    a, b = model(first), model(second)
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-12)
    assert not torch.allclose(a[:, 5:], b[:, 5:])
