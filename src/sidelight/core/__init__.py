"""Hold the words that every part uses: times, spans, answers, batches."""
