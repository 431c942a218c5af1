"""Looking at the Ethernet frames of a recording: what they say, which to show, streams, capture files."""
