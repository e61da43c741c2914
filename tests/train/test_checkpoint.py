"""Checkpoints appear whole or not at all, and damage is noticed."""

import errno
import shutil

import numpy as np
import pytest
from networks import tiny

from tfpar import devices, errors, files
from tfpar.train import checkpoint


@pytest.fixture(scope="module")
def variables():
    from tfpar.steps import objective

    model = tiny()
    objective.build(model)
    return checkpoint.variables_of(model)


def values(found):
    return [content for _, content in found[1]]


def test_what_was_saved_comes_back(variables, tmp_path):
    progress = {"step": 3, "losses": 0.1 + 0.2, "rows": [{"loss": 1e-17}]}
    checkpoint.save(tmp_path / "c", variables, progress)
    found = checkpoint.newest(tmp_path / "c")
    assert found[0] == progress and values(found) == [np.asarray(v).tobytes() for v in variables]
    assert any("seed_generator_state" in v.path for v in variables)  # dropout resumes too


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_restore_writes_every_replica(replicas, tmp_path):
    from tfpar.steps import objective

    strategy = devices.strategy(simulate=replicas)
    one, other = tiny(seed=1), tiny(strategy, seed=2)
    objective.build(one)
    objective.build(other)
    for variable in checkpoint.variables_of(one):
        variable.assign(np.ones(variable.shape) if "float" in variable.dtype else np.full(variable.shape, 7))
    checkpoint.save(tmp_path / "c", checkpoint.variables_of(one), {})
    checkpoint.restore(checkpoint.variables_of(other), checkpoint.newest(tmp_path / "c")[1], strategy)
    for a, b in zip(checkpoint.variables_of(one), checkpoint.variables_of(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), a.path


def test_the_last_two_are_kept(variables, tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, variables, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000004", "000005"]
    assert checkpoint.newest(tmp_path)[0] == {"step": 4}


@pytest.mark.parametrize("name", ["manifest.json", "variables.bin"])
@pytest.mark.parametrize("damage", [0, 0.01, 0.5, 0.99, "flip", "remove"])
def test_damage_is_named_and_the_one_before_is_used(variables, tmp_path, name, damage, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, variables, {"step": step})
    path = tmp_path / "000002" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        content[len(content) // 3] ^= 16
        path.write_bytes(content)
    else:
        path.write_bytes(content[: int(len(content) * damage)])
    assert checkpoint.newest(tmp_path)[0] == {"step": 1}
    assert str(path) in capsys.readouterr().out


def test_a_disk_that_does_not_answer_now_costs_no_checkpoint(variables, tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, variables, {"step": step})

    def gone(_path):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Path, "read_bytes", gone)
        with pytest.raises(errors.InputOutputFailed, match=r"000002/manifest.json: cannot be read .*Check the disk"):
            checkpoint.newest(tmp_path)
    assert checkpoint.newest(tmp_path)[0] == {"step": 2}


def test_a_file_in_the_place_of_a_checkpoint_is_none(variables, tmp_path):
    checkpoint.save(tmp_path, variables, {"step": 1})
    (tmp_path / "000002").write_bytes(b"")
    assert checkpoint.newest(tmp_path)[0] == {"step": 1}


def test_leftovers_do_not_matter(variables, tmp_path):
    checkpoint.save(tmp_path, variables, {"step": 1})
    (tmp_path / "000002").mkdir()
    (tmp_path / "000002" / ".77.variables.bin").write_bytes(b"half")
    (tmp_path / ".77.x").write_bytes(b"half")
    assert checkpoint.newest(tmp_path)[0] == {"step": 1}
    checkpoint.save(tmp_path, variables, {"step": 2})
    assert checkpoint.newest(tmp_path)[0] == {"step": 2}


class Stopped(BaseException):
    """Stands for the power going."""


def test_stopped_after_any_write_sync_or_rename_the_one_before_is_there(variables, tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "c", variables, {"step": 1})
    original, renamed = files.sync, checkpoint.Path.replace
    for stop in range(1, 40):
        left = stop

        def counting(function):
            def wrapped(*arguments):
                nonlocal left
                left -= 1
                if left == 0:
                    raise Stopped
                return function(*arguments)

            return wrapped

        monkeypatch.setattr(files, "sync", counting(original))
        monkeypatch.setattr(checkpoint.Path, "replace", counting(renamed))
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        shutil.copytree(tmp_path / "c", tmp_path / "d")
        try:
            checkpoint.save(tmp_path / "d", variables, {"step": 2})
        except Stopped:
            assert checkpoint.newest(tmp_path / "d")[0]["step"] in (1, 2)
        else:
            break
    assert 6 <= stop < 39 and checkpoint.newest(tmp_path / "d")[0] == {"step": 2}


def test_bytes_are_on_the_disk_before_a_file_takes_its_name(tmp_path, monkeypatch):
    """After a power cut a renamed file whose bytes were not flushed may be empty."""
    done = []
    sync, rename = files.sync, checkpoint.Path.replace
    monkeypatch.setattr(files, "sync", lambda path: (done.append(("sync", path)), sync(path))[1])
    monkeypatch.setattr(checkpoint.Path, "replace", lambda a, b: (done.append(("rename", a)), rename(a, b))[1])
    files.write(tmp_path / "x", b"content")
    (first, beside), (second, renamed), last = done
    assert (first, second, beside) == ("sync", "rename", renamed) and last == ("sync", tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_or_read_only_disk_is_one_clear_error_and_the_old_one_is_intact(
    variables, tmp_path, monkeypatch, number
):
    checkpoint.save(tmp_path, variables, {"step": 1})

    def failing(self, *_arguments):
        raise OSError(number, "it does not work", str(self))

    monkeypatch.setattr(checkpoint.Path, "write_bytes", failing)
    with pytest.raises(errors.InputOutputFailed, match="intact"):
        checkpoint.save(tmp_path, variables, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path)[0] == {"step": 1}


def test_another_models_checkpoint_is_refused(variables, tmp_path):
    checkpoint.save(tmp_path, variables, {})
    with pytest.raises(errors.SettingsError, match="another model"):
        checkpoint.restore(variables[1:], checkpoint.newest(tmp_path)[1], devices.strategy())
