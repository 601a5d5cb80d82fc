"""All-reduce between local processes with gloo: what `himpun bench collective` is compared with.

    python torch_allreduce.py [--world-size N] [--bytes B]

Starts one process per rank, one thread each, and prints one JSON line: the median between two barriers, as rank 0
sees it.
"""

import argparse
import json
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def rank_main(rank, arguments, port):
    """One of the processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=arguments.world_size)
    values = torch.ones(arguments.bytes // 4)
    times = []
    for call in range(2 + arguments.samples):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(values)
        dist.barrier()
        if call >= 2:
            times.append(1e3 * (time.perf_counter() - begun))
        values.fill_(1)
    if rank == 0:
        median = statistics.median(times)
        sent = 2 * (arguments.world_size - 1) / arguments.world_size * 4 * len(values)
        print(
            json.dumps(
                {
                    "operation_ms": median,
                    "operation_ms_min": min(times),
                    "operation_ms_max": max(times),
                    "bytes": 4 * len(values),
                    "gb_per_s": 4 * len(values) / median / 1e6,
                    "bus_gb_per_s": sent / median / 1e6,
                    "world_size": arguments.world_size,
                    "calls": len(times),
                    "torch": torch.__version__,
                }
            )
        )
    dist.destroy_process_group()


def free_port():
    """A port that nobody uses at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world-size", type=int, default=4)
    parser.add_argument("--bytes", type=int, default=45_000_000)
    parser.add_argument("--samples", type=int, default=15)
    arguments = parser.parse_args()
    multiprocessing.spawn(rank_main, (arguments, free_port()), arguments.world_size)


if __name__ == "__main__":
    main()
