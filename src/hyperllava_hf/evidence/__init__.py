"""Evidence: guided experts against their controls, trained alike on digit scenes."""
