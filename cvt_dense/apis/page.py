"""The page of ``tools/app.py``: pictures, what a model finds in them, and what is inside of it. Needs Gradio."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gradio as gr
import numpy as np
from gradio.components import Component

from ..errors import UserError
from .panels import Panel, attention_panels, circled, likeness_panels, map_panels, plain_picture
from .predictor import Skipped
from .viewer import Inside, Point, View, Viewer

#: Sessions, that is browser tabs, whose pictures are kept; one more takes the place of the oldest.
MAX_SESSIONS = 16
MAX_FILE_SIZE = '64mb'

# Seconds after which uploaded and drawn pictures are deleted, and between looking for such.
_FILES_LIVE, _FILES_LOOKED_FOR = 3600, 600
# What all events share: they wait for each other, and are no interface for programs.
_ONE_AT_A_TIME: dict[str, Any] = dict(concurrency_limit=1, concurrency_id='model', api_visibility='private')
_CSS = """
.fault { color: #c2410c; font-weight: 600 }
.grid-wrap { min-height: 0 !important; max-height: none !important }
.caption-label { max-width: 100% !important; right: 0 !important; bottom: 0 !important; font-size: 11px !important }
"""
_PREDICTIONS, _INSIDE, _COMPARE = 'Predictions', 'Inside', 'Compare'

Which = Literal['first', 'second']
Updates = dict[Component, Any]


@dataclass(frozen=True)
class Shown:
    """A picture that is open, and what was seen inside of the model from its point, once that was asked for."""

    view: View
    inside: Inside | None = None


@dataclass(frozen=True)
class Session:
    """What a browser tab has open.

    Attributes:
        first: The picture.
        second: The one to compare it with.
        clicked: The picture that was clicked last, or the first one.
        tab: Of the page, that is in front.
    """

    first: Shown | None = None
    second: Shown | None = None
    clicked: Which = 'first'
    tab: str = _PREDICTIONS


class Side(NamedTuple):
    """Where one of two pictures that are compared is shown."""

    picture: gr.Image
    likeness: gr.Gallery
    maps: gr.Gallery
    attention: gr.Gallery


class Page:
    """The page of a model.

    Args:
        viewer: The model.
        title: What to call it.
        threshold: Score from which objects are drawn at first.

    Attributes:
        blocks: The page, as Gradio has it.
    """

    def __init__(self, viewer: Viewer, title: str, threshold: float) -> None:
        self._viewer = viewer
        with gr.Blocks(
            analytics_enabled=False, title=title, fill_width=True, delete_cache=(_FILES_LOOKED_FOR, _FILES_LIVE)
        ) as self.blocks:
            self._session = gr.State(Session())
            gr.HTML(f'<h2>{html.escape(title)}</h2>')
            with gr.Row():
                with gr.Column(scale=1, min_width=240):
                    self._lay_out_inputs(threshold)
                with gr.Column(scale=5), gr.Tabs() as self._tabs:
                    self._lay_out_tabs()
            self._connect()

    def _lay_out_inputs(self, threshold: float) -> None:
        self._uploads: dict[Which, gr.Image] = {}
        self._notes: dict[Which, gr.HTML] = {}
        for which, label in (('first', 'Picture'), ('second', 'Second picture, to compare')):
            self._uploads[which] = gr.Image(
                label=label, type='filepath', sources=['upload', 'clipboard'], height=190, buttons=[], elem_id=which
            )
            self._notes[which] = gr.HTML(elem_id=f'{which}-note')
        self._score = gr.Slider(
            0, 1, threshold, step=0.01, label='Score from', visible=self._viewer.detects, elem_id='score'
        )

    def _lay_out_tabs(self) -> None:
        with gr.Tab(_PREDICTIONS), gr.Row():
            self._drawn = _picture('What the model finds', 'drawn', scale=3)
            with gr.Column(scale=2, min_width=280):
                self._table = gr.Dataframe(
                    headers=self._viewer.columns, column_widths=self._widths, interactive=False, elem_id='table'
                )
        with gr.Tab(_INSIDE):
            self._inside_note = gr.HTML(_line(self._hint), elem_id='inside-note')
            with gr.Row():
                self._to_click = _picture('Click a point', 'to-click', scale=1)
                self._maps = _gallery('Maps of the stages', 'maps', columns=3, scale=2)
            self._attention = _gallery('Attention of the point, in each block', 'attention', columns=5)
        with gr.Tab(_COMPARE):
            self._compare_note = gr.HTML(_line(self._hint), elem_id='compare-note')
            self._sides: dict[Which, Side] = {}
            with gr.Row():
                for which, label in (('first', 'Picture'), ('second', 'Second picture')):
                    with gr.Column():
                        self._sides[which] = Side(
                            _picture(f'{label}: click a point', f'{which}-side'),
                            _gallery('Likeness to the point that was clicked last', f'{which}-likeness', columns=3),
                            _gallery('Maps of the stages, in the same colours', f'{which}-maps', columns=3),
                            _gallery('Attention of the point, in each block', f'{which}-attention', columns=3),
                        )

    @property
    def _widths(self) -> list[str]:
        """Of the table's columns: names of classes take more room than numbers."""
        others = len(self._viewer.columns) - 1
        return ['30%', *[f'{70 // others}%'] * others]

    @property
    def _hint(self) -> str:
        """What to do in the tabs that look inside."""
        return self._viewer.cannot_look_inside or 'Choose a picture, and click a point of it.'

    def _connect(self) -> None:
        given = [self._session, self._score]
        outcome = [self._session, self._drawn, self._table]
        looked = [
            *(self._session, self._inside_note, self._to_click, self._maps, self._attention),
            self._compare_note,
            *(component for side in self._sides.values() for component in side),
        ]
        pictures = [side.picture for side in self._sides.values()]

        def look(session: Session, threshold: float) -> Updates:
            return self._look(session, threshold)

        def change_tab(session: Session, threshold: float, event: gr.SelectData) -> Updates:
            return self._look(replace(session, tab=event.value), threshold)

        for which, upload in self._uploads.items():
            # As it was sent: that a file is no picture is for the reader of the model's pipeline to find out.
            settings = dict(preprocess=False, show_progress_on=[self._notes[which]], **_ONE_AT_A_TIME)
            for event in (upload.upload, upload.clear):
                opened = event(
                    self._opening(which), [*given, upload], [*outcome, upload, self._notes[which]], **settings
                )
                opened.then(look, given, looked, show_progress_on=[self._inside_note], **_ONE_AT_A_TIME)
        self._tabs.select(
            change_tab, given, looked, show_progress_on=[self._inside_note, self._compare_note], **_ONE_AT_A_TIME
        )
        self._score.change(
            self._redraw,
            given,
            [self._drawn, self._table, *pictures],
            trigger_mode='always_last',
            show_progress='hidden',
            **_ONE_AT_A_TIME,
        )
        for which, picture in (('first', self._to_click), *zip(self._sides, pictures)):
            picture.select(self._clicking(which), given, looked, show_progress_on=[picture], **_ONE_AT_A_TIME)

    def _opening(self, which: Which) -> Callable[[Session, float, Mapping[str, Any] | None], Updates]:
        """What opens a picture in the place of the first or the second one, or closes it."""

        def open_picture(session: Session, threshold: float, sent: Mapping[str, Any] | None) -> Updates:
            shown, line, updates = None, '', {}
            if sent is not None:
                path = Path(sent['path'])
                name = sent.get('orig_name') or path.name
                try:
                    shown = Shown(self._viewer.open(path, name))
                    line = _line(shown.view.description)
                except (Skipped, UserError) as error:
                    line = _line(f'{name}: {error}', is_fault=True)
                    updates[self._uploads[which]] = None
            session = replace(session, clicked='first', **{which: shown})
            updates |= {self._session: session, self._notes[which]: line}
            return updates | (self._predictions(session, threshold) if which == 'first' else {})

        return open_picture

    def _clicking(self, which: Which) -> Callable[[Session, float, gr.SelectData], Updates]:
        """What moves the point of the first or the second picture to where that is clicked."""

        def click(session: Session, threshold: float, event: gr.SelectData) -> Updates:
            shown: Shown | None = getattr(session, which)
            if shown is None:
                return self._look(session, threshold)
            height, width = plain_picture(shown.view).shape[:2]
            point = shown.view.point_at(event.index, (width, height))
            shown = Shown(shown.view, self._inside(shown.view, point))
            return self._look(replace(session, clicked=which, **{which: shown}), threshold)

        return click

    def _redraw(self, session: Session, threshold: float) -> Updates:
        """Draw the pictures that are open again, with objects of another score."""
        return self._predictions(session, threshold) | self._pictures_side_by_side(session, threshold)

    def _predictions(self, session: Session, threshold: float) -> Updates:
        view = session.first and session.first.view
        if view is None:
            return {self._drawn: None, self._table: []}
        return {self._drawn: _rgb(self._viewer.draw(view, threshold)), self._table: self._viewer.rows(view, threshold)}

    def _look(self, session: Session, threshold: float) -> Updates:
        """Fill the tab that is in front, if it is one that looks inside; points that nobody chose are the middles."""
        wanted: dict[str, tuple[Which, ...]] = {_INSIDE: ('first',), _COMPARE: ('first', 'second')}
        if not self._viewer.cannot_look_inside:
            for which in wanted.get(session.tab, ()):
                shown: Shown | None = getattr(session, which)
                if shown and shown.inside is None:
                    width, height = shown.view.size
                    inside = self._inside(shown.view, (width // 2, height // 2))
                    session = replace(session, **{which: replace(shown, inside=inside)})
        updates: Updates = {self._session: session}
        if session.tab == _INSIDE:
            updates |= self._inside_of_one(session)
        if session.tab == _COMPARE:
            updates |= self._compared(session) | self._pictures_side_by_side(session, threshold)
        return updates

    def _inside(self, view: View, point: Point) -> Inside | None:
        return None if self._viewer.cannot_look_inside else self._viewer.look_inside(view, point)

    def _inside_of_one(self, session: Session) -> Updates:
        shown = session.first
        if shown is None or shown.inside is None:
            picture = None if shown is None else _rgb(plain_picture(shown.view))
            return {
                self._inside_note: _line(self._hint),
                self._to_click: picture,
                self._maps: [],
                self._attention: [],
            }
        return {
            self._inside_note: _line(_point_of(shown)),
            self._to_click: _rgb(circled(plain_picture(shown.view), shown.view, shown.inside)),
            self._maps: _entries(map_panels([(shown.view, shown.inside)])),
            self._attention: _entries(attention_panels(shown.view, shown.inside)),
        }

    def _compared(self, session: Session) -> Updates:
        pair: dict[Which, Shown | None] = {which: getattr(session, which) for which in self._sides}
        looked = {which: (shown.view, shown.inside) for which, shown in pair.items() if shown and shown.inside}
        lines = [_point_of(pair[which]) for which in looked]
        updates: Updates = {self._compare_note: _line('; '.join(lines) or self._hint)}
        both = list(looked.values())
        maps, likeness = map_panels(both) if both else [], []
        if session.clicked in looked:
            likeness = likeness_panels(looked[session.clicked][1], both)
        for which, side in self._sides.items():
            number = list(looked).index(which) if which in looked else 0
            of_this = slice(number, None, len(both)) if which in looked else slice(0)  # panels of a stage alternate
            updates[side.likeness], updates[side.maps] = _entries(likeness[of_this]), _entries(maps[of_this])
            updates[side.attention] = _entries(attention_panels(*looked[which])) if which in looked else []
        return updates

    def _pictures_side_by_side(self, session: Session, threshold: float) -> Updates:
        updates: Updates = {}
        for which, side in self._sides.items():
            shown: Shown | None = getattr(session, which)
            if shown is not None:
                drawn = self._viewer.draw(shown.view, threshold)
                drawn = circled(drawn, shown.view, shown.inside) if shown.inside else drawn
            updates[side.picture] = None if shown is None else _rgb(drawn)
        return updates


@contextmanager
def served(page: Page, host: str, port: int | None) -> Iterator[str]:
    """Serve a page, in threads, as long as the context is open; the value is its address.

    Args:
        page: Of a model.
        host: Address to listen at.
        port: None for 7860, or the first one after it that is free.

    Raises:
        UserError: If the address cannot be listened at.
    """
    try:
        _, address, _ = page.blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            css=_CSS,
            max_file_size=MAX_FILE_SIZE,
            state_session_capacity=MAX_SESSIONS,
        )
    except OSError as error:
        where = host if port is None else f'{host}, port {port}'
        raise UserError(
            f'nothing can be served at {where}: it is taken, or not an address of this machine; choose another --host '
            'or --port'
        ) from error
    try:
        yield address
    finally:
        page.blocks.close(verbose=False)


def _picture(label: str, name: str, **settings: Any) -> gr.Image:
    return gr.Image(
        label=label, interactive=False, format='png', buttons=['fullscreen', 'download'], elem_id=name, **settings
    )


def _gallery(label: str, name: str, **settings: Any) -> gr.Gallery:
    return gr.Gallery(
        label=label, interactive=False, object_fit='contain', height='auto', buttons=[], elem_id=name, **settings
    )


def _line(text: str, is_fault: bool = False) -> str:
    return f'<p{" class=fault role=alert" if is_fault else ""}>{html.escape(text)}</p>'


def _point_of(shown: Shown) -> str:
    x, y = shown.inside.point
    return f'{shown.view.name}: point {x}, {y} of {shown.view.size[0]}×{shown.view.size[1]} pixels'


def _entries(panels: Sequence[Panel]) -> list[tuple[np.ndarray, str]]:
    return [(_rgb(panel.picture), panel.title) for panel in panels]


def _rgb(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[..., ::-1])
