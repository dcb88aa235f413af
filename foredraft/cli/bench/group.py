"""The group `foredraft bench`."""

from foredraft.cli.lazy import group

bench = group({
    "run": ("foredraft.cli.bench.run:run", "Compare decoding methods on the same articles."),
    "steps": ("foredraft.cli.bench.steps:steps", "Time plain decode steps at a real model's sizes."),
    "throughput": ("foredraft.cli.bench.throughput:throughput", "Articles and tokens a second by batch size."),
    "ngram": ("foredraft.cli.bench.ngram:ngram", "Speed, size and acceptance of n-gram tables."),
    "gpu": ("foredraft.cli.bench.gpu:gpu", "Check and time foredraft on this machine's GPU."),
    "compare": ("foredraft.cli.bench.compare:compare", "Find parts that became slower."),
}, help="Measure decoding methods side by side.")
