"""What the papers report: their figures, on their models and data. Nothing here was measured by this project.

`MemoryLLM`: arXiv 2402.04624. `M+`: arXiv 2502.00592. `Grass`: arXiv 2406.17660. Figures that exist as plots only were
read off them and are good to about 0.005.
"""

from tables import grid

_RETENTION = (  # distractors; MemoryLLM-8B and -7B on NaturalQuestions, then on SQuAD
    (0, ".574", ".206", ".663", ".296"),
    (1, ".494", ".199", ".629", ".273"),
    (2, ".455", ".220", ".624", ".293"),
    (5, ".420", ".175", ".581", ".268"),
    (10, ".366", ".172", ".471", ".229"),
    (20, ".301", ".094", ".369", ".090"),
    (30, ".254", ".089", ".286", ".074"),
    (40, ".229", "", ".258", ""),
    (60, ".155", "", ".181", ""),
)
RETENTION = "\n".join(
    [
        grid(
            (
                "texts written since",
                "NaturalQuestions, MemoryLLM-8B",
                "NaturalQuestions, MemoryLLM-7B",
                "SQuAD, MemoryLLM-8B",
                "SQuAD, MemoryLLM-7B",
            ),
            ([str(step), *(f"0{share}" if share else "" for share in shares)] for step, *shares in _RETENTION),
        ),
        "",
        "Share of hits, read off the plot in the README of the published code, on questions that Llama-3-8B does not "
        "answer without the text; without it, hits are about 0.122 and 0.085. The paper on MemoryLLM, on its own set "
        "of questions, has 0.46 (NaturalQuestions) and 0.39 (SQuAD) for MemoryLLM-7B one step after the write. N is "
        "7,680 (7B) and 12,800 (8B), K 256. M+ stays above its line without context up to 160,000 tokens (a plot).",
    ]
)

RETRIEVAL = (
    "M+, 160,000 tokens written, 81,276 slots per layer in long-term memory: about 0.30 of the 256 slots asked about "
    "are among the 2,560 retrieved, where chance gives 0.03."
)

_EDITING = (
    ("Llama2-7B, no edit", 55.9, 54.7, 56.3, 55.6, 13.7, 16.6, 83.4, 20.7),
    ("MemoryLLM-7B, no edit", 50.0, 49.1, 54.8, 51.2, 15.7, 17.6, 82.1, 22.6),
    ("MemoryLLM-7B, written into memory", 99.8, 96.7, 57.1, 79.2, 98.5, 82.2, 57.0, 75.3),
    ("IKE, in context", None, None, None, None, 99.8, 96.2, 45.4, 70.7),
    ("FT", 78.6, 80.6, 29.0, 50.3, 99.7, 96.9, 3.6, 10.0),
    ("FT-L", 81.4, 76.8, 56.6, 69.8, 47.2, 18.0, 83.3, 33.8),
    ("ROME", 88.7, 70.2, 56.3, 69.3, 82.6, 75.2, 55.8, 69.2),
)
EDITING = "\n".join(
    [
        grid(
            [
                "",
                *(
                    f"{data}: {name}"
                    for data in ("zsRE", "CounterFact")
                    for name in ("efficacy", "generalisation", "specificity", "score")
                ),
            ],
            ([name, *("" if share is None else f"{share:.1f}" for share in shares)] for name, *shares in _EDITING),
        ),
        "",
        "In percent, MemoryLLM, table 1: the first 10,000 records of zsRE and 2,000 of CounterFact, Llama2-7B. The "
        "script that made the rows of MemoryLLM is not published.",
    ]
)

_LONGCONTEXT = (
    ("MemoryLLM-7B, 16k", 27.22, 34.03, 19.57, 13.47, 29.56, 20.64),
    ("Llama-3.1-8B, 8k", 34.87, 43.10, 29.96, 24.96, 43.18, 24.29),
    ("Llama-3.1-8B, 16k", 34.11, 44.72, 30.05, 31.96, 48.86, 25.19),
    ("M+, 8k", 33.12, 37.99, 29.91, 20.68, 40.11, 24.18),
    ("M+, 16k", 32.71, 38.56, 30.39, 24.58, 46.32, 24.12),
)
LONGCONTEXT = "\n".join(
    [
        grid(
            ("", "2wikimqa", "hotpotqa", "qasper", "musique", "multifieldqa_en", "narrativeqa"),
            ([name, *(f"{f1:.2f}" for f1 in scores)] for name, *scores in _LONGCONTEXT),
        ),
        "",
        "F1 in percent on LongBench: MemoryLLM, table 2, and M+, table 2.",
    ]
)

INTEGRITY = (
    "MemoryLLM-7B, texts of NaturalQuestions and SQuAD over and over: 650,000 updates in three days without a decline "
    "of the newest answers (a plot)."
)

PERPLEXITY = (
    'M+, 1,000 documents of fineweb-edu of at most 2,048 tokens: "perplexity" 1.9828, Llama-3.1-8B 1.9734. They are '
    "too low to be perplexities of such text, and are probably mean losses."
)

SPEED = "\n".join(
    [
        grid(
            ("", "GPU memory, MB"),
            (
                ("Llama-3.1-8B with SnapKV, 32k", "32,574"),
                ("Llama-3.2-3B, 128k", "30,423"),
                ("M+", "21,178"),
                ("M+, pool on the CPU", "17,973"),
                ("MemoryLLM-8B", "21,176"),
                ("Llama-3.1-8B, 16k", "19,239"),
            ),
        ),
        "",
        "M+, table 1: the most that was allocated in tasks on books.",
    ]
)

GRASS = (
    "Grass, abstract: a Llama of 13B is pretrained in half precision on one A100 of 40 GB, and throughput on 8 GPUs is "
    "up to twice as high; introduction: full-rank training of it takes at least 102 GB at 256 tokens."
)
