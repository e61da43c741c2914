"""The ring all-reduce of page 6, animated: the moves are computed by the page's own rule, `(worker - turn) % size`.

A row of a worker is a piece of its vector. It has a cell for each worker, which is filled when that worker's numbers are in the sum.
"""

SIZE = 4
TURNS = 2 * (SIZE - 1)
SECONDS = 1.8  # of a turn; one more stands before them and one behind
PARTS = TURNS + 2
WIDTH, HEIGHT = 150, 136  # of a worker
PLACES = [(20, 46), (340, 46), (340, 276), (20, 276)]  # of the workers, clockwise
TABLE_X, TABLE_Y, COLUMN, ROW = 560, 116, 30, 30
# A piece leaves a worker here, and comes to the next one there.
LINKS = [((174, 114), (336, 114)), ((415, 186), (415, 272)), ((336, 344), (174, 344)), ((95, 272), (95, 186))]


def sends():
    """Yield (turn, worker, piece, what the next worker has of it before, and after) for each message."""
    held = [[{worker} for _ in range(SIZE)] for worker in range(SIZE)]
    for turn in range(TURNS):
        for worker in range(SIZE):
            piece, following = (worker - turn) % SIZE, held[(worker + 1) % SIZE]
            before = set(following[piece])
            following[piece] |= held[worker][piece]
            yield turn, worker, piece, before, set(following[piece])


def motion() -> str:
    """Return the rules that move pieces and fill cells."""
    whole = PARTS * SECONDS
    rules = [f".part {{ opacity: 0; animation: part {whole:g}s step-end infinite }}"]
    rules.append(f"@keyframes part {{ 0% {{ opacity: 1 }} {100 / PARTS:g}%, 100% {{ opacity: 0 }} }}")
    rules += [f".part{n} {{ animation-delay: {(n - PARTS) * SECONDS:g}s }}" for n in range(PARTS)]
    rules.append(f".move {{ animation-duration: {SECONDS:g}s; animation-iteration-count: infinite; animation-timing-function: ease-in-out }}")
    for worker, ((x, y), (to_x, to_y)) in enumerate(LINKS):
        there = f"transform: translate({to_x - x}px, {to_y - y}px)"
        rules.append(f".from{worker} {{ animation-name: from{worker} }}")
        rules.append(f"@keyframes from{worker} {{ 0%, 15% {{ transform: none }} 80%, 100% {{ {there} }} }}")
    for turn in range(TURNS):
        at = 100 * (turn + 1.8) / PARTS
        rules.append(f".fill{turn} {{ opacity: 0; animation: fill{turn} {whole:g}s step-end infinite }}")
        rules.append(f"@keyframes fill{turn} {{ 0% {{ opacity: 0 }} {at:g}%, 100% {{ opacity: 1 }} }}")
    still = ".part, .move, .fill0, .fill1, .fill2, .fill3, .fill4, .fill5 { animation: none }"
    rules.append(f".part0 {{ opacity: 1 }}\n@media (prefers-reduced-motion: reduce) {{ {still} }}")
    return "\n".join(rules)


def cell(worker: int, piece: int, source: int) -> tuple[int, int]:
    """Return where the cell of a piece is that stands for the numbers of one worker."""
    x, y = PLACES[worker]
    return x + 42 + 24 * source, y + 32 + 25 * piece


def workers() -> list[str]:
    lines = []
    for worker, (x, y) in enumerate(PLACES):
        lines.append(f'<rect class="area" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="10"/>')
        lines.append(f'<text class="head" x="{x + WIDTH // 2}" y="{y + 17}">{{worker_{worker}}}</text>')
        for piece in range(SIZE):
            left, top = cell(worker, piece, 0)
            lines.append(f'<text class="small t{piece}" x="{left - 18}" y="{top + 10}">{piece}</text>')
            for source in range(SIZE):
                left, top = cell(worker, piece, source)
                own = f"c{piece}" if source == worker else "plain none soft"
                lines.append(f'<rect class="{own} box" x="{left}" y="{top}" width="20" height="20" rx="3"/>')
    for turn, worker, piece, before, after in sends():
        for source in sorted(after - before):
            left, top = cell((worker + 1) % SIZE, piece, source)
            lines.append(f'<rect class="c{piece} box fill{turn}" x="{left}" y="{top}" width="20" height="20" rx="3"/>')
    return lines


def links() -> list[str]:
    lines = [f'<path class="arrow" d="M{x} {y}L{to_x} {to_y}"/>' for (x, y), (to_x, to_y) in LINKS]
    for turn, worker, piece, _, _ in sends():
        (x, y), _ = LINKS[worker]
        inward = 14 if y == LINKS[worker][1][1] else 0
        x, y = x + (inward if x < 255 else -inward), y + (0 if inward else (14 if y < 229 else -14))
        lines.append(
            f'<g class="part part{turn + 1}"><g class="move from{worker}"><rect class="c{piece} box" x="{x - 14}" y="{y - 12}" '
            f'width="28" height="24" rx="5"/><text class="head" x="{x}" y="{y}">{piece}</text></g></g>'
        )
    return lines


def told() -> list[str]:
    """Return the words in the middle of the ring."""
    lines, words = [], ["ring_start", *["ring_add"] * (SIZE - 1), *["ring_pass"] * (SIZE - 1), "ring_end"]
    return lines + [f'<text class="part part{n}" x="255" y="229">{{{word}}}</text>' for n, word in enumerate(words)]


def table() -> list[str]:
    """Return which piece each worker sends in each turn; a frame marks the present turn."""
    end = TABLE_X + COLUMN * TURNS
    lines = [f'<text class="head" x="{(TABLE_X - 40 + end) // 2}" y="46">{{ring_table}}</text>']
    lines.append(f'<text class="code" x="{(TABLE_X - 40 + end) // 2}" y="72">(worker - turn) % 4</text>')
    lines.append(f'<text class="note end" x="{TABLE_X - 8}" y="{TABLE_Y - 14}">{{ring_turn}}</text>')
    for turn in range(TURNS):
        lines.append(f'<text class="note" x="{TABLE_X + COLUMN * turn + 14}" y="{TABLE_Y - 14}">{turn}</text>')
    for worker in range(SIZE):
        lines.append(f'<text class="note end" x="{TABLE_X - 8}" y="{TABLE_Y + ROW * worker + 13}">{{only_worker_{worker}}}</text>')
    for turn, worker, piece, _, _ in sends():
        x, y = TABLE_X + COLUMN * turn + 1, TABLE_Y + ROW * worker
        lines.append(f'<rect class="c{piece} box" x="{x}" y="{y}" width="26" height="26" rx="4"/>')
        lines.append(f'<text class="small" x="{x + 13}" y="{y + 13}">{piece}</text>')
    for turn in range(TURNS):
        x = TABLE_X + COLUMN * turn - 2
        lines.append(
            f'<rect class="plain none thick part part{turn + 1}" x="{x}" y="{TABLE_Y - 26}" width="{COLUMN + 2}" height="{ROW * SIZE + 28}" rx="6"/>'
        )
    y = TABLE_Y + ROW * SIZE + 12
    for first, key in ((0, "ring_first"), (SIZE - 1, "ring_second")):
        x = TABLE_X + COLUMN * first
        lines.append(f'<path class="line" d="M{x + 2} {y - 4}V{y}H{x + COLUMN * (SIZE - 1) - 4}V{y - 4}"/>')
        lines.append(f'<text class="note" x="{x + COLUMN * (SIZE - 1) // 2}" y="{y + 20}">{{{key}}}</text>')
    lines.append(f'<text class="note" x="{(TABLE_X - 40 + end) // 2}" y="350">{{ring_legend}}</text>')
    return lines


def svg() -> str:
    body = "\n".join([*workers(), *links(), *told(), *table()])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 430">
<title>{{ring_title}}</title>
<style>
{motion()}
</style>
{body}
</svg>
"""
