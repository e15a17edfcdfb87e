"""The built-in data: `facts.json`, facts to edit, and `texts.json`, sentences for perplexity.

Both were written for this project and copied from nowhere. Each record of `facts.json` holds the
fields of a `jaxedit.Request`, with neighbours as prompt and answer, and a kind: "normal", or "hard"
where the prompt begins with the subject and the subject is a single token under SmolLM2's
tokenizer. The facts were checked with SmolLM2-135M (Instruct) in float32: its greedy continuation
of every prompt begins with target_true, save for BP, whose target_true it only finds likelier than
target_new. Neighbours were checked in the same way as prompts; of the paraphrases, some pass that
check and the rest pass as BP does."""
