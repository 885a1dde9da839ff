"""Read annotations and the files of benchmarks."""
