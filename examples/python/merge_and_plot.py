"""Merges an adapter and plots the singular values of what it changes: `python merge_and_plot.py BASE ADAPTER OUT`."""

import sys

import lorakit


def main(base: str, adapter: str, out: str) -> None:
    """Merges, opens, plots."""
    print(lorakit.merge(base, adapter, out=out))
    spectra = {path: module.singular_values() for path, module in lorakit.open_adapter(adapter).items()}
    try:
        from matplotlib import pyplot
    except ImportError:
        for path, values in spectra.items():
            print(path, values[:4])
        return
    for path, values in spectra.items():
        pyplot.semilogy(values, label=path)
    pyplot.ylabel("singular values of ΔW")
    pyplot.savefig(f"{out}.spectra.png")


if __name__ == "__main__":
    main(*sys.argv[1:4])
