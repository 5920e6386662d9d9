"Measure language models: tokens, first tokens, and what bounds them"
