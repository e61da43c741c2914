"""The ring all-reduce of page 6, animated: the moves are computed by the page's own rule, `(worker - turn) % size`.

A row of a worker is a piece of its vector. It has a cell for each worker, which is filled when that worker's numbers are in the sum.
Without animation the picture is the beginning, beside the table of all moves.
"""

SIZE = 4
TURNS = 2 * (SIZE - 1)
SECONDS = 2  # of a turn; one more stands before them and one behind
PARTS = TURNS + 2
WIDTH, HEIGHT = 150, 136  # of a worker
LEFT, RIGHT, UPPER, LOWER = 18, 322, 24, 254
PLACES = [(LEFT, UPPER), (RIGHT, UPPER), (RIGHT, LOWER), (LEFT, LOWER)]  # of the workers, clockwise
CELL, GAP, ROW = 20, 24, 25
TABLE_X, TABLE_Y, COLUMN, LINE = 562, 114, 30, 30


def sends():
    """Yield (turn, worker, piece, whose numbers it sends, whose of them are new to the next worker) for each message."""
    held = [[{worker} for _ in range(SIZE)] for worker in range(SIZE)]
    for turn in range(TURNS):
        for worker in range(SIZE):
            piece, following = (worker - turn) % SIZE, held[(worker + 1) % SIZE]
            sent = set(held[worker][piece])
            yield turn, worker, piece, sent, sent - following[piece]
            following[piece] |= sent


def corner(worker: int, piece: int, source: int = 0) -> tuple[int, int]:
    """Return where the cell of a piece is that stands for the numbers of one worker."""
    x, y = PLACES[worker]
    return x + 42 + GAP * source, y + 32 + ROW * piece


def cell(worker: int, piece: int, source: int, kind: str) -> str:
    x, y = corner(worker, piece, source)
    return f'<rect class="{kind} box" x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="3"/>'


def motion() -> str:
    """Return the rules that move rows and fill cells. A turn is a part of the whole; its rows move from 10 to 80% of it."""
    whole = PARTS * SECONDS
    rules = [
        f".part {{ opacity: 0; animation: part {whole}s step-end infinite }} .part0 {{ opacity: 1 }}",
        f"@keyframes part {{ 0% {{ opacity: 1 }} {100 / PARTS:g}%, 100% {{ opacity: 0 }} }}",
        *(f".part{n} {{ animation-delay: {(n - PARTS) * SECONDS}s }}" for n in range(PARTS)),
        f".move {{ animation: {SECONDS}s ease-in-out infinite }}",
    ]
    for worker, (x, y) in enumerate(PLACES):
        to_x, to_y = PLACES[(worker + 1) % SIZE]
        rules.append(f".from{worker} {{ animation-name: from{worker} }}")
        rules.append(
            f"@keyframes from{worker} {{ 0%, 10% {{ transform: none }} 80%, 100% {{ transform: translate({to_x - x}px, {to_y - y}px) }} }}"
        )
    for turn in range(TURNS):
        at = 100 * (turn + 1.8) / PARTS
        rules.append(f".fill{turn} {{ opacity: 0; animation: fill{turn} {whole}s step-end infinite }}")
        rules.append(f"@keyframes fill{turn} {{ 0% {{ opacity: 0 }} {at:g}%, 100% {{ opacity: 1 }} }}")
    fills = ", ".join(f".fill{turn}" for turn in range(TURNS))
    return "\n".join(
        [*rules, f"@media (prefers-reduced-motion: reduce) {{ .part, .move, {fills} {{ animation: none }} }}"]
    )


def workers() -> list[str]:
    lines = []
    for worker, (x, y) in enumerate(PLACES):
        lines.append(f'<rect class="area" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="10"/>')
        lines.append(f'<text class="head" x="{x + WIDTH // 2}" y="{y + 17}">{{worker_{worker}}}</text>')
        for piece in range(SIZE):
            left, top = corner(worker, piece)
            lines.append(f'<text class="small t{piece}" x="{left - 18}" y="{top + CELL // 2}">{piece}</text>')
            lines += [
                cell(worker, piece, source, f"c{piece}" if source == worker else "plain none soft")
                for source in range(SIZE)
            ]
    for turn, worker, piece, _, new in sends():
        lines += [cell((worker + 1) % SIZE, piece, source, f"c{piece} fill{turn}") for source in sorted(new)]
    return lines


def rows_on_their_way() -> list[str]:
    lines = []
    for turn, worker, piece, sent, _ in sends():
        x, y = corner(worker, piece)
        lines.append(f'<g class="part part{turn + 1}"><g class="move from{worker}">')
        lines.append(
            f'<rect class="c{piece} none thick" x="{x - 3}" y="{y - 3}" width="{GAP * SIZE + 2}" height="{CELL + 6}" rx="5"/>'
        )
        lines += [cell(worker, piece, source, f"c{piece}") for source in sorted(sent)]
        lines.append("</g></g>")
    return lines


def ring() -> list[str]:
    """Return the arrows, and the words between them, which change."""
    x, y, half, middle = LEFT + WIDTH, UPPER + HEIGHT, WIDTH // 2, HEIGHT // 2
    lines = [
        f'<path class="arrow" d="M{x + 4} {UPPER + middle}H{RIGHT - 4}"/>',
        f'<path class="arrow" d="M{RIGHT + half} {y + 4}V{LOWER - 4}"/>',
        f'<path class="arrow" d="M{RIGHT - 4} {LOWER + middle}H{x + 4}"/>',
        f'<path class="arrow" d="M{LEFT + half} {LOWER - 4}V{y + 4}"/>',
    ]
    at = f'x="{(x + RIGHT) // 2}" y="{(y + LOWER) // 2}"'
    words = ["ring_start", *["ring_add"] * (SIZE - 1), *["ring_pass"] * (SIZE - 1), "ring_end"]
    return lines + [f'<text class="part part{n}" {at}>{{{word}}}</text>' for n, word in enumerate(words)]


def table() -> list[str]:
    """Return which piece each worker sends in each turn; a frame marks the present turn."""
    middle = (TABLE_X - 50 + TABLE_X + COLUMN * TURNS) // 2
    lines = [
        f'<text class="head" x="{middle}" y="40">{{ring_table}}</text>',
        f'<text class="code" x="{middle}" y="66">(worker - turn) % 4</text>',
        f'<text class="note end" x="{TABLE_X - 8}" y="{TABLE_Y - 14}">{{ring_turn}}</text>',
        f'<text class="note" x="{middle}" y="350">{{ring_legend}}</text>',
    ]
    for worker in range(SIZE):
        lines.append(
            f'<text class="note end" x="{TABLE_X - 8}" y="{TABLE_Y + LINE * worker + 13}">{{only_worker_{worker}}}</text>'
        )
    for turn, worker, piece, _, _ in sends():
        x, y = TABLE_X + COLUMN * turn + 1, TABLE_Y + LINE * worker
        lines.append(f'<rect class="c{piece} box" x="{x}" y="{y}" width="26" height="26" rx="4"/>')
        lines.append(f'<text class="small" x="{x + 13}" y="{y + 13}">{piece}</text>')
    for turn in range(TURNS):
        x, size = TABLE_X + COLUMN * turn, f'width="{COLUMN + 2}" height="{LINE * SIZE + 28}"'
        lines.append(f'<text class="note" x="{x + 14}" y="{TABLE_Y - 14}">{turn}</text>')
        lines.append(
            f'<rect class="plain none thick part part{turn + 1}" x="{x - 2}" y="{TABLE_Y - 26}" {size} rx="6"/>'
        )
    for first, key in ((0, "ring_first"), (SIZE - 1, "ring_second")):
        x, y = TABLE_X + COLUMN * first, TABLE_Y + LINE * SIZE + 12
        lines.append(f'<path class="line" d="M{x + 2} {y - 5}V{y}H{x + COLUMN * (SIZE - 1) - 4}V{y - 5}"/>')
        lines.append(f'<text class="note" x="{x + COLUMN * (SIZE - 1) // 2}" y="{y + 16}">{{{key}}}</text>')
    return lines


def svg() -> str:
    body = "\n".join([*workers(), *ring(), *rows_on_their_way(), *table()])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 414">
<title>{{ring_title}}</title>
<style>
{motion()}
</style>
{body}
</svg>
"""
