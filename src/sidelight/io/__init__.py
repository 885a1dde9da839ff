"""Read and write files safely, on disk and in object storage."""
