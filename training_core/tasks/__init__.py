"""Tasks for models: questions with verified answers, program repair, and the sandbox that both need."""
