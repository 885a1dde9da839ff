"""Export answers: tables, subtitles, chapters, cut lists and timelines; draw groundings and scores."""
