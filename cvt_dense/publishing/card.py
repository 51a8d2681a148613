"""The model card: a README.md with the front matter that the Hugging Face Hub reads, filled from what is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCardData

from .facts import Facts
from .logs import is_main

#: Metrics that the Hub knows, by the toolkits' names.
_HUB_METRICS = {'mIoU': 'mean_iou', 'accuracy/top1': 'accuracy'}


def model_card(
    facts: Facts, weights: str, repo: str | None, license: str | None, in_timm: bool, files: Iterable[str]
) -> str:
    """Write the card.

    Args:
        facts: What is known.
        weights: Name of the weights' files, without suffix.
        repo: ``user/name`` on the Hub, if it goes there.
        license: Of the weights, as the Hub abbreviates it; None leaves it open.
        in_timm: Whether the backbone is there for timm.
        files: Names of all files beside the card.
    """
    parts = [
        f'---\n{_front_matter(facts, license, in_timm)}\n---',
        f'# {facts.name}',
        _what(facts),
        *_results(facts, files),
        *_section('Training', _table(('setting', 'value'), facts.training.items())),
        '## Use',
        _use(facts, weights, repo, in_timm),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _front_matter(facts: Facts, license: str | None, in_timm: bool) -> str:
    results = [
        EvalResult(
            task_type=facts.task,
            dataset_type=facts.hub_dataset or facts.dataset,
            dataset_name=facts.dataset,
            metric_type=_HUB_METRICS.get(name, name),
            metric_name=name,
            metric_value=float(f'{value:.6g}'),
        )
        for name, value in facts.main_metrics.items()
        if facts.task and facts.dataset
    ]
    data = ModelCardData(
        license=license,
        library_name=facts.library,
        pipeline_tag=facts.task,
        tags=['cvt_dense', *(['timm'] if in_timm else [])],
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        metrics=[_HUB_METRICS[name] for name in facts.main_metrics if name in _HUB_METRICS] or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _what(facts: Facts) -> str:
    of_data = f', trained on {facts.dataset}' if facts.dataset else ''
    names = ', '.join(facts.classes)
    classes = f' Its {len(facts.classes)} classes: {names}.' if facts.classes else ''
    return f'{facts.parts}{of_data}.{classes}'


def _results(facts: Facts, files: Iterable[str]) -> list[str]:
    rows = [(name, f'{value:.4g}') for name, value in facts.main_metrics.items()]
    at = f' These weights, after {facts.iteration} iterations:' if rows else ''
    curves = '![Losses, learning rate and metrics over iterations](curves.png)' if 'curves.png' in files else ''
    whole = f'On validation data, by the evaluations of the run.{at}'
    parts = [whole if facts.logs.evaluations else '', _table(('metric', 'value'), rows), _history(facts), curves]
    return _section('Results', *parts)


def _history(facts: Facts) -> str:
    """A table of the main metrics by iteration, if there is more than one evaluation."""
    evaluations = facts.logs.evaluations
    if len(evaluations) < 2:
        return ''
    names = list(dict.fromkeys(name for entry in evaluations for name in entry if name != 'iter' and is_main(name)))
    rows = [
        (str(entry['iter']), *(f'{entry[name]:.4g}' if name in entry else '' for name in names))
        for entry in evaluations
    ]
    return f'All evaluations:\n\n{_table(("iteration", *names), rows)}'


def _use(facts: Facts, weights: str, repo: str | None, in_timm: bool) -> str:
    config, file = f'{facts.name}.py', f'{weights}.pth'
    where = 'this folder' if repo is None else f'this repository (`hf download {repo} --local-dir .`)'
    lines = [
        f'With [mmengine](https://github.com/open-mmlab/mmengine) and `cvt_dense` installed, in {where}:',
        f'```bash\npython tools/predict.py {config} {file} IMAGES --out predictions\n'
        f'python tools/test.py {config} {file}\n```',
        'Its backbone in another config:',
        f"```python\nbackbone = dict(init_cfg=dict(type='Pretrained', checkpoint='{file}'))\n```",
    ]
    if in_timm:
        source = f'hf-hub:{repo}' if repo else 'local-dir:.'
        lines += [
            'Its backbone in timm:',
            '```python\nimport cvt_dense, timm\n\n'
            f"backbone = timm.create_model('{source}', pretrained=True, features_only=True)\n```",
        ]
    return '\n\n'.join(lines)


def _section(title: str, *parts: str) -> list[str]:
    """A heading and what is below it, if there is anything."""
    return [f'## {title}', *parts] if any(parts) else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return ''
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
