"""What a model is asked to do: questions with verified answers, repairs of programs, and the sandbox they need."""
