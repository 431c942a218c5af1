"""Questions to ask of a disk: `Probe` in tt.chronus.search.verdicts says what one is."""
