import io
import logging
import threading

import numpy as np
import pytest
import torch

from vae.errors import InputError
from vae.evaluation import feature_net

SHAPE = (2, 5, 7)
CLASSES = 3


def striped(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images whose bright row is their class, with noise."""
    g = torch.Generator().manual_seed(count)
    labels = torch.randint(CLASSES, (count,), generator=g)
    images = torch.randint(0, 60, (count, *SHAPE), generator=g, dtype=torch.uint8)
    images[torch.arange(count), :, labels] += 150
    return images, labels


def same(a, b):
    first, second = a.state_dict().values(), b.state_dict().values()
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def cached(path, data_md5="0" * 32, seed=0):
    return feature_net.feature_net(path, *striped(30), CLASSES, data_md5, seed)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache directory that did not exist, with one net in it; tests copy what they damage."""
    path = tmp_path_factory.mktemp("root") / "not" / "there"
    net, name = cached(path)
    return path, net, name


def trainings(caplog):
    return sum("trained in" in record.message for record in caplog.records)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 9), (2, 28, 28)])
def test_any_image_shape_gives_64_features_and_logits(shape):
    net = feature_net.FeatureNet(shape, CLASSES).eval()
    x = torch.rand(6, *shape)
    assert net.features(x).shape == (6, 64)
    assert torch.equal(net(x), net.head(net.features(x)))
    assert net(x).shape == (6, CLASSES)


def test_images_too_small_are_refused():
    with pytest.raises(InputError, match="4 x 4"):
        feature_net.FeatureNet((1, 3, 8), CLASSES)


def test_training_learns_and_is_a_function_of_its_seed():
    images, labels = striped(150)
    net = feature_net.train_feature_net(images, labels, CLASSES, seed=1, epochs=20)
    held_out, truth = striped(80)
    assert (feature_net.embed(net, held_out)[1] == truth).float().mean() > 0.97
    assert same(net, feature_net.train_feature_net(images.clone(), labels.clone(), CLASSES, 1, epochs=20))
    assert not same(net, feature_net.train_feature_net(images, labels, CLASSES, seed=2, epochs=1))


def test_global_random_state_is_untouched(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    cached(tmp_path)  # trains
    cached(tmp_path)  # loads
    assert torch.equal(state, torch.get_rng_state())


def test_training_works_where_lightning_has_switched_gradients_off():
    images, labels = striped(30)
    expected = feature_net.train_feature_net(images, labels, CLASSES, seed=0, epochs=2)
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            net = feature_net.train_feature_net(images.clone(), labels.clone(), CLASSES, seed=0, epochs=2)
        assert same(net, expected)


@pytest.mark.parametrize("count", [2, 101, 199])
def test_no_batch_is_left_with_one_image(count):
    feature_net.train_feature_net(*striped(count), CLASSES, seed=0, epochs=1)


def test_labels_must_match_images():
    images, labels = striped(8)
    with pytest.raises(ValueError, match="8 images, 7 labels"):
        feature_net.train_feature_net(images, labels[:7], CLASSES, seed=0)


def test_embed_is_the_same_for_bytes_floats_and_batches(kept):
    _, net, _ = kept
    images, _ = striped(23)
    expected, predictions = feature_net.embed(net, images)
    assert expected.shape == (23, 64)
    assert torch.equal(predictions, net(images.float() / 255).argmax(1))
    for variant in (images.float() / 255, images.double() / 255):
        net.train()  # as Lightning does to every child
        found, _ = feature_net.embed(net, variant, batch=7)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_second_call_loads_and_does_not_train(kept, caplog):
    path, net, name = kept
    caplog.set_level(logging.INFO)
    again, again_name = cached(path)
    assert again_name == name
    assert same(net, again)
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training
    assert trainings(caplog) == 0
    assert sorted(p.suffix for p in path.iterdir()) == [".lock", ".pt"]


def test_name_follows_data_seed_count_and_recipe(tmp_path, kept, monkeypatch):
    names = {kept[2], cached(tmp_path, data_md5="1" * 32)[1], cached(tmp_path, seed=1)[1]}
    names.add(feature_net.feature_net(tmp_path, *striped(31), CLASSES, "0" * 32)[1])
    monkeypatch.setattr(feature_net, "RECIPE", (feature_net.RECIPE[0] + 1, *feature_net.RECIPE[1:]))
    names.add(cached(tmp_path)[1])
    assert len(names) == 5
    assert all(len(n) == len("convnet-") + 8 and n.startswith("convnet-") for n in names)


def truncate(content):
    return content[: len(content) // 2]


def flip(content):
    """One bit, in the middle of the weights."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :]


def other_network(_):
    stream = io.BytesIO()
    torch.save(torch.nn.Linear(2, 3).state_dict(), stream)
    return stream.getvalue()


@pytest.mark.parametrize("damage", [truncate, flip, other_network, lambda _: b"", lambda _: b"no archive"])
def test_damaged_file_is_said_and_trained_again(tmp_path, kept, caplog, damage):
    source, net, _ = kept
    (file,) = source.glob("*.pt")
    target = tmp_path / file.name
    target.write_bytes(damage(file.read_bytes()))
    caplog.set_level(logging.INFO)
    again, _ = cached(tmp_path)
    assert same(net, again)
    assert trainings(caplog) == 1
    assert f"{target} is damaged" in caplog.text
    cached(tmp_path)
    assert trainings(caplog) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, kept, caplog):
    (tmp_path / "file").write_text("in the way")
    net, name = cached(tmp_path / "file")
    assert name == kept[2]
    assert same(net, kept[1])
    assert "cannot be kept there" in caplog.text


def test_callers_at_once_train_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = []
    threads = [threading.Thread(target=lambda: found.append(cached(tmp_path)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trainings(caplog) == 1
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_digits_of_other_writers_are_recognised():
    """scikit-learn's set is in the order of its writers, so the end of it is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8))
    net = feature_net.train_feature_net(images[:1200], torch.from_numpy(digits.target[:1200]), 10, seed=0)
    predictions = feature_net.embed(net, images[1200:])[1].numpy()
    assert (predictions == digits.target[1200:]).mean() >= 0.93
