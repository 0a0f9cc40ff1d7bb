"""Models that ComfyUI manages: batches that fit the device, one copy of a model, and files that change."""

import gc
import os
import shutil
import weakref

import pytest
import torch
from realigndiff.core.embedded import WEIGHTS


@pytest.fixture
def interrupts(comfy):
    from realigndiff.nodes.host import interrupts

    return interrupts


@pytest.fixture
def loaders(comfy, tmp_path, monkeypatch):
    """The loaders, whose model folders are empty ones."""
    import folder_paths
    from realigndiff.nodes import loaders

    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda key: [str(tmp_path / key)])
    return loaders


class TestBatches:
    @pytest.fixture
    def progress(self, interrupts, monkeypatch):
        """The fractions that the progress bar shows."""
        seen = []

        class Bar:
            def __init__(self, total):
                self.total = total

            def update_absolute(self, value, total):
                seen.append(value / total)

        monkeypatch.setattr(interrupts.comfy.utils, "ProgressBar", Bar)
        return seen

    def test_images_are_looked_at_in_runs_and_keep_their_order(self, interrupts, progress):
        runs = []

        def work(part, tell):
            runs.append((part.start, part.stop))
            tell(0.5)
            return list(range(100)[part])

        assert interrupts.in_batches(19, work) == list(range(19))
        assert runs == [(0, 8), (8, 16), (16, 19)]
        assert progress == sorted(progress) and progress[-1] == 1.0
        assert progress[:2] == pytest.approx([4 / 19, 8 / 19], abs=1e-3)

    def test_runs_are_halved_while_the_device_has_no_memory_for_them(self, interrupts, progress):
        runs = []

        def work(part, tell):
            runs.append(part.stop - part.start)
            if runs[-1] > 2:
                raise interrupts.comfy.model_management.OOM_EXCEPTION("out of memory")
            return list(range(100)[part])

        assert interrupts.in_batches(5, work) == list(range(5))
        assert runs == [5, 4, 2, 2, 1]

    def test_one_image_that_does_not_fit_is_told(self, interrupts, progress):
        def work(part, tell):
            raise interrupts.comfy.model_management.OOM_EXCEPTION("out of memory")

        with pytest.raises(interrupts.comfy.model_management.OOM_EXCEPTION):
            interrupts.in_batches(2, work)


class TestOneCopy:
    def test_what_is_loaded_alike_is_one_as_long_as_anyone_holds_it(self, loaders):
        folder = WEIGHTS / "ram"
        one, two, half = loaders.load_tagger(folder), loaders.load_tagger(folder), loaders.load_tagger(folder, "fp16")
        assert one._model is two._model is not half._model
        assert one._patchers == two._patchers
        held = weakref.ref(one._model)
        del one, two
        gc.collect()
        assert held() is None

    def test_a_captioner_is_shared_also_where_only_one_has_a_text_encoder(self, loaders):
        alone = loaders.load_blip2(WEIGHTS / "blip2_captioner", None)
        both = loaders.load_blip2(WEIGHTS / "blip2_captioner", WEIGHTS / "blip2_itm")
        assert alone._model.captioner is both._model.captioner
        assert alone._patchers[0] is both._patchers[0]

    def test_a_network_in_8_bits_stays_where_it_is(self, interrupts):
        from realigndiff.nodes.host.managed_models import ManagedModel

        network = torch.nn.Linear(2, 2)
        network.is_quantized = True
        with ManagedModel(network, network).loaded() as model:
            assert model(torch.ones(1, 2)).shape == (1, 2)


class TestFilesThatChange:
    @pytest.fixture
    def folder(self, loaders, tmp_path):
        """models/rams with the demo's tagger in it."""
        return shutil.copytree(WEIGHTS / "ram", tmp_path / "rams" / "own")

    def later(self, file, text):
        file.write_text(text, encoding="utf-8")
        os.utime(file, (2_000_000_000, 2_000_000_000))

    def test_a_list_beside_a_single_file_counts(self, loaders, tmp_path):
        (tmp_path / "rams").mkdir()
        file = tmp_path / "rams" / "ram.pth"
        file.write_bytes(b"weights")
        before = loaders.LoadRam.fingerprint_inputs("ram.pth", "auto")
        self.later(tmp_path / "rams" / "ram_tag_list.txt", "one\n")
        assert loaders.LoadRam.fingerprint_inputs("ram.pth", "auto") != before

    def test_free_tags_are_read_and_read_again_when_they_change(self, loaders, folder, tmp_path):
        from realigndiff.perception.labels import save_labels

        labels = tmp_path / "rams" / "labels"
        labels.mkdir()
        width = loaders.load_tagger(folder)._model.model.config.label_width

        def written(*tags):
            for file in labels.iterdir():
                file.unlink()
            save_labels(labels / "pets.safetensors", list(tags), torch.randn(len(tags), width))
            for i, file in enumerate(sorted(labels.iterdir())):
                os.utime(file, (2_000_000_000 + len(tags), 2_000_000_000 + len(tags) + i))
            stamp = loaders.LoadRam.fingerprint_inputs("own", "auto", "pets.safetensors")
            (tagger,) = loaders.LoadRam.execute("own", "auto", "pets.safetensors").result
            return stamp, tagger

        before, first = written("cat", "dog")
        after, second = written("cat", "dog", "fox")
        assert before != after
        assert (first._model.tags, second._model.tags) == (["cat", "dog"], ["cat", "dog", "fox"])
        assert "pets.safetensors" not in loaders.model_folders.choices("rams", "model")

    @pytest.mark.parametrize("name", ["x.ckpt", "x.PTH", "x.SafeTensors", "x.bin"])
    def test_a_file_of_weights_is_offered_whatever_its_ending(self, loaders, tmp_path, name):
        (tmp_path / "sams").mkdir()
        (tmp_path / "sams" / name).touch()
        (tmp_path / "sams" / "x.txt").touch()
        assert [choice for choice in loaders.model_folders.choices("sams", "") if choice.startswith("x.")] == [name]

    def test_labels_that_are_not_there_are_told(self, loaders, folder):
        with pytest.raises(ValueError, match=r"'x.safetensors' is no labels: choose one of the model's own"):
            loaders.LoadRam.execute("own", "auto", "x.safetensors")
