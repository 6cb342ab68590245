"""SongEval's published code with random weights of the published size, timed on request.

`songeval.py` runs it, with the Python of an environment that has muq and transformers 4.46:

    PYTHON benchmarks/songeval_published.py FOLDER

FOLDER has SongEval's `model.py`. Each line of the input is a length in seconds; the answer is the
processor seconds of one song of noise of that length and the peak memory so far in GiB.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

RATE = 24_000
MEL_MEAN, MEL_STD = 6.768444971712967, 18.417922652295623


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    muq, head = published(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        samples = 0.1 * torch.randn(1, round(RATE * float(line)))
        started = time.process_time()
        head(muq(samples, output_hidden_states=True)["hidden_states"][6])
        spent = time.process_time() - started
        print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)


def published(folder: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """MuQ-large-msd-iter and the head, as `eval.py` builds them."""
    sys.path.insert(0, folder)
    from model import Generator
    from muq import MuQ
    from transformers import Wav2Vec2ConformerConfig

    layers = Wav2Vec2ConformerConfig(
        hidden_size=1024,
        num_attention_heads=16,
        intermediate_size=4096,
        hidden_act="swish",
        conv_depthwise_kernel_size=31,
        position_embeddings_type="rotary",
    ).to_dict()
    muq = MuQ(
        {
            "stat": {"melspec_2048_mean": MEL_MEAN, "melspec_2048_std": MEL_STD},
            # The package makes attributes of all names, which must be text.
            "w2v2_config": {k: v for k, v in layers.items() if not isinstance(v, dict)},
            "use_rvq_target": True,
        }
    )
    return muq.eval(), Generator(1024, 4096, 5, 4).eval()


if __name__ == "__main__":
    main()
