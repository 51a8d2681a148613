from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import WEIGHTS, Payload, assert_equal, save, save_shards

from cvt_dense.checkpoints.files import read, shard_names
from cvt_dense.errors import CheckpointError

FILES = ('a.pth', 'a.bin', 'legacy.pth', 'legacy.bin', 'a.safetensors')
SHARDS = ('.safetensors', '.bin')


def refusal(path: Path) -> str:
    """The message with which a file is refused."""
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert str(error.value).startswith(f'checkpoint {path.parent}')
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('name', FILES)
def test_every_kind_of_file_is_read(tmp_path: Path, name: str) -> None:
    assert_equal(read(save(tmp_path / name)))


@pytest.mark.parametrize('name', FILES)
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / name).read_bytes()
    for length in {*range(0, min(len(whole), 64)), *range(0, len(whole), 1 + len(whole) // 40), len(whole) - 1}:
        (tmp_path / name).write_bytes(whole[:length])
        message = refusal(tmp_path / name)
        assert f'{name} is damaged, incomplete or' in message or f'{name} was refused: it is damaged' in message


@pytest.mark.parametrize('name', FILES)
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_a_damaged_file_never_fails_otherwise(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / name).read_bytes()
    for position in torch.randint(len(whole), (150,)).tolist():
        (tmp_path / name).write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(CheckpointError):
            read(tmp_path / name)  # a byte of a tensor's values, say, goes unnoticed


@pytest.mark.parametrize(
    'text',
    [
        '',
        '\n',
        'hello world\n',
        'README',
        '<!DOCTYPE html><html>404</html>',
        '{"error": "not found"}',
        'version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 80000000\n',
    ],
)
@pytest.mark.parametrize('suffix', ['.pth', '.bin', '.safetensors', '.json'])
def test_a_text_file_is_refused(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f'text{suffix}'
    path.write_text(text)
    message = refusal(path)
    assert any(
        part in message
        for part in (
            'is damaged, incomplete or not a checkpoint',
            'was refused: it is damaged',
            'is not an index of shards',
        )
    )


@pytest.mark.parametrize(
    ('suffix', 'what'),
    [
        ('.pth', 'is damaged, incomplete or not a checkpoint'),
        ('.safetensors', 'is damaged, incomplete or not a checkpoint'),
        ('.json', 'is not an index of shards'),
    ],
)
def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path, suffix: str, what: str) -> None:
    (tmp_path / f'folder{suffix}').mkdir()
    for name in ('folder', 'missing'):
        assert f'{name}{suffix} {what}' in refusal(tmp_path / f'{name}{suffix}')


@pytest.mark.parametrize('name', ['a.pth', 'legacy.pth', 'pickle.pth'])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    target, path = tmp_path / 'created', tmp_path / name
    if name == 'pickle.pth':
        path.write_bytes(pickle.dumps(Payload(target)))
    else:
        save(path, {'state_dict': Payload(target)})
    assert 'was refused: it is damaged, or holds more than plain weights' in refusal(path)
    assert not target.exists()


@pytest.mark.parametrize(('content', 'kind'), [([1, 2], 'list'), (torch.zeros(2), 'Tensor'), (None, 'NoneType')])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, kind: str) -> None:
    assert f'holds a {kind} where a state dict was expected' in refusal(save(tmp_path / 'a.pth', content))


@pytest.mark.parametrize('suffix', SHARDS)
def test_all_shards_that_an_index_lists_are_read(tmp_path: Path, suffix: str) -> None:
    assert_equal(read(save_shards(tmp_path, suffix)))


def test_a_shard_that_holds_several_tensors_is_listed_once(tmp_path: Path) -> None:
    save(tmp_path / 'b.bin', {})
    index = tmp_path / 'a.index.json'
    index.write_text(json.dumps({'weight_map': dict.fromkeys(WEIGHTS, save(tmp_path / 'a.bin').name) | {'x': 'b.bin'}}))
    assert shard_names(index) == ['a.bin', 'b.bin']


@pytest.mark.parametrize('suffix', SHARDS)
def test_a_shard_that_is_not_there_is_named(tmp_path: Path, suffix: str) -> None:
    index = save_shards(tmp_path, suffix)
    lost = shard_names(index)[1]
    (tmp_path / lost).unlink()
    assert refusal(index) == f'checkpoint {index} lists {lost!r}, which is not beside it'


@pytest.mark.parametrize('suffix', SHARDS)
def test_a_tensor_that_no_shard_holds_is_named(tmp_path: Path, suffix: str) -> None:
    index = save_shards(tmp_path, suffix)
    content = json.loads(index.read_text())
    content['weight_map']['stage9.cls_token'] = shard_names(index)[0]
    index.write_text(json.dumps(content))
    assert refusal(index) == f"checkpoint {index} lists 'stage9.cls_token', which none of its files holds"


@pytest.mark.parametrize('suffix', SHARDS)
def test_a_truncated_shard_is_refused_by_its_own_name(tmp_path: Path, suffix: str) -> None:
    index = save_shards(tmp_path, suffix)
    shard = tmp_path / shard_names(index)[1]
    shard.write_bytes(shard.read_bytes()[:-20])
    assert str(shard) in refusal(index)


def test_code_in_a_shard_is_refused_and_not_run(tmp_path: Path) -> None:
    index = save_shards(tmp_path, '.bin')
    shard = tmp_path / shard_names(index)[1]
    save(shard, {'norm.bias': Payload(tmp_path / 'created')})
    assert f'{shard} was refused: it is damaged, or holds more than plain weights' in refusal(index)
    assert not (tmp_path / 'created').exists()


@pytest.mark.parametrize(
    'name', ['../a.bin', '/etc/passwd', 'shards/a.bin', './a.bin', 'a.bin/', 'other.index.json', '..', '.', '', None, 3]
)
def test_only_files_beside_an_index_can_be_its_shards(tmp_path: Path, name: Any) -> None:
    below = tmp_path / 'below'
    (below / 'shards').mkdir(parents=True)
    for folder in (tmp_path, below, below / 'shards'):
        save(folder / 'a.bin')
    index = below / 'model.index.json'
    index.write_text(json.dumps({'weight_map': dict.fromkeys(WEIGHTS, name)}))
    assert refusal(index) == f'checkpoint {index} lists {name!r}, which is not a file beside it'


@pytest.mark.parametrize('name', ['a\nb.bin', 'a\0b.bin', '\ud800.bin'], ids=ascii)
def test_a_shard_of_an_impossible_name_is_not_there(tmp_path: Path, name: str) -> None:
    index = tmp_path / 'model.index.json'
    index.write_text(json.dumps({'weight_map': dict.fromkeys(WEIGHTS, name)}))
    assert refusal(index) == f'checkpoint {index} lists {name!r}, which is not beside it'


@pytest.mark.parametrize(
    'text',
    [
        '{"weight_map": {"norm.bias": "a.bin"',
        '{}',
        '[]',
        'null',
        '{"weight_map": ["a.bin"]}',
        '{"weight_map": null}',
        '{"weight_map": {"norm.bias": ["a.bin"]}}',
        '{"weight_map": {"norm.bias": "a.bin", "norm.weight": 1}}',
        '[' * 100_000,
    ],
    ids=lambda text: text[:50],
)
def test_what_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    save(tmp_path / 'a.bin')
    index = tmp_path / 'model.index.json'
    index.write_text(text)
    assert f'{index} is not an index of shards: ' in refusal(index)


def test_an_index_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'a.json').write_bytes(b'\xff\xfe\x00')
    assert 'is not an index of shards: UnicodeDecodeError' in refusal(tmp_path / 'a.json')
