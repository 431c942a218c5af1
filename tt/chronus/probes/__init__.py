"""Questions to ask of a disk: `Probe` in tt.chronus.verdicts says what one is."""
