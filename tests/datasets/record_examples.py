"""An example of each form of record with the request it describes, and files of records."""

import json

from jaxedit.edits.request import PromptAnswer, Request

OWN = {
    "prompt": "{} is located in the city of",
    "subject": "The Eiffel Tower",
    "target_new": "Rome",
    "target_true": "Paris",
    "paraphrases": ["To see The Eiffel Tower one travels to"],
    "neighbours": [{"prompt": "The Louvre is located in the city of", "answer": "Paris"}],
    "generation_prompts": ["The Eiffel Tower is"],
    "case_id": "tower",
    "relation": "P131",
    "portability": [{"prompt": "The Eiffel Tower is in the country of", "answer": "Italy"}],
    "kind": "place",
    "note": "as in Meng et al. 2022, figure 1",
}
COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux spoke the language", "Danielle Darrieux, a native"],
    "neighborhood_prompts": [
        "Michel Rocard is a native speaker of",
        "The mother tongue of Jean is",
    ],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
FLAT = {
    "case_id": 3,
    "prompt": "In Rome, the Rome marathon is run in",
    "target_new": "Oslo",
    "subject": "Rome",
    "ground_truth": "Italy",
    "rephrase_prompt": "Rome lies in",
    "locality_prompt": "Bergen lies in",
    "locality_ground_truth": "Norway",
}
ZSRE = {
    "subject": "WEFS",
    "src": "When was WEFS established?",
    "pred": "1998",
    "rephrase": "When has WEFS been established?",
    "alt": "1997",
    "answers": ["1987", "1988"],
    "loc": "nq question: who voiced gaston",
    "loc_ans": "Richard White",
    "cond": "1998 >> 1997 || When was WEFS established?",
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Oslo",
    "ground_truth": ["Berlin", "Berlin, Germany"],
    "rephrase": "Leo Arons died in",
    "portability": {
        "Reasoning": [
            {
                "prompt": "Leo Arons died in the country of",
                "ground_truth": [["Norway", "Kingdom of Norway"]],
            }
        ],
        "Subject_Aliasing": [
            {"prompt": "The place of death of Martin Leo Arons is", "ground_truth": "Oslo"}
        ],
        "Logical_Generalization": [{"prompt": "Nobody knows", "ground_truth": []}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": ["Leo Arons was born in"], "ground_truth": [["Berlin"]]}
        ]
    },
}
KNOWN = {
    "known_id": 4,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Croatia", "id": "Q224"},
            "target_true": {"str": "United States of America", "id": "Q30"},
            "subject": "Ellie Kemper",
            "question": "What is the country of citizenship of Ellie Kemper?",
        }
    ],
    "questions": ["Who is the head of state of the country of which Ellie Kemper is a citizen?"],
    "answer": "Joe Biden",
    "new_answer": "Kolinda Grabar",
}
WIKIBIGEDIT = {
    "tag": "new",
    "subject": "Exampleland",
    "update": "Who leads Exampleland?",
    "ans": "Ada",
    "relation": "head of state",
    "rephrase": "Who is the leader of Exampleland?",
    "personas": "Exampleland leader who?",
    "personas_formal": "Whom does Exampleland have as its leader?",
    "loc": "Who leads Otherland?",
    "loc_ans": "Bob",
    "mhop": "Where was the leader of Exampleland born?",
    "mhop_ans": "London",
}
ULTRAEDITBENCH = {
    "subject": "Exampleland",
    "prompt": "Who leads Exampleland?",
    "ans": "Ada",
    "rephrase_prompt": "Who is the leader of Exampleland?",
    "loc": "Who leads Otherland?",
    "loc_ans": "Bob",
}
EASYEDIT = {key: value for key, value in FLAT.items() if key not in ("ground_truth", "case_id")}
EXAMPLES = {  # form -> a record, and its request
    "own": (
        OWN,
        Request(
            prompt="{} is located in the city of",
            subject="The Eiffel Tower",
            target_new="Rome",
            target_true="Paris",
            paraphrases=("To see The Eiffel Tower one travels to",),
            neighbours=(PromptAnswer("The Louvre is located in the city of", "Paris"),),
            generation_prompts=("The Eiffel Tower is",),
            case_id="tower",
            relation="P131",
            portability=(PromptAnswer("The Eiffel Tower is in the country of", "Italy"),),
        ),
    ),
    "counterfact": (
        COUNTERFACT,
        Request(
            prompt="The mother tongue of {} is",
            subject="Danielle Darrieux",
            target_new="English",
            target_true="French",
            paraphrases=("Danielle Darrieux spoke the language", "Danielle Darrieux, a native"),
            neighbours=(
                PromptAnswer("Michel Rocard is a native speaker of", "French"),
                PromptAnswer("The mother tongue of Jean is", "French"),
            ),
            generation_prompts=("Danielle Darrieux's mother tongue is",),
            case_id=7,
            relation="P103",
            target_id="Q1860",
        ),
    ),
    "counterfact-flat": (
        FLAT,
        Request(
            prompt="In {}, the Rome marathon is run in",
            subject="Rome",
            target_new="Oslo",
            target_true="Italy",
            paraphrases=("Rome lies in",),
            neighbours=(PromptAnswer("Bergen lies in", "Norway"),),
            case_id=3,
        ),
    ),
    "knowedit": (
        KNOWEDIT,
        Request(
            prompt="The place of death of {} is",
            subject="Leo Arons",
            target_new="Oslo",
            target_true="Berlin",
            paraphrases=("Leo Arons died in",),
            neighbours=(PromptAnswer("Leo Arons was born in", "Berlin"),),
            portability=(
                PromptAnswer("Leo Arons died in the country of", "Norway"),
                PromptAnswer("The place of death of Martin Leo Arons is", "Oslo"),
            ),
        ),
    ),
    "mquake": (
        MQUAKE,
        Request(
            prompt="{} is a citizen of",
            subject="Ellie Kemper",
            target_new="Croatia",
            target_true="United States of America",
            paraphrases=("What is the country of citizenship of Ellie Kemper?",),
            case_id=1,
            relation="P27",
            portability=(
                PromptAnswer(
                    "Who is the head of state of the country of which Ellie Kemper is a citizen?",
                    "Kolinda Grabar",
                ),
            ),
        ),
    ),
    "zsre": (
        ZSRE,
        Request(
            prompt="When was {} established?",
            subject="WEFS",
            target_new="1997",
            target_true="1987",
            paraphrases=("When has WEFS been established?",),
            neighbours=(PromptAnswer("who voiced gaston?", "Richard White"),),
        ),
    ),
    "easyedit": (
        EASYEDIT,
        Request(
            prompt="In {}, the Rome marathon is run in",
            subject="Rome",
            target_new="Oslo",
            paraphrases=("Rome lies in",),
            neighbours=(PromptAnswer("Bergen lies in", "Norway"),),
        ),
    ),
    "wikibigedit": (
        WIKIBIGEDIT,
        Request(
            prompt="Who leads {}?",
            subject="Exampleland",
            target_new="Ada",
            paraphrases=(
                "Who is the leader of Exampleland?",
                "Exampleland leader who?",
                "Whom does Exampleland have as its leader?",
            ),
            neighbours=(PromptAnswer("Who leads Otherland?", "Bob"),),
            portability=(PromptAnswer("Where was the leader of Exampleland born?", "London"),),
            relation="head of state",
        ),
    ),
    "ultraeditbench": (
        ULTRAEDITBENCH,
        Request(
            prompt="Who leads {}?",
            subject="Exampleland",
            target_new="Ada",
            paraphrases=("Who is the leader of Exampleland?",),
            neighbours=(PromptAnswer("Who leads Otherland?", "Bob"),),
        ),
    ),
}
ANSWER_PATHS = {  # form -> where its answers are, none of which may be empty
    "own": [("target_new",), ("target_true",), ("neighbours", 0, "answer")],
    "counterfact": [
        ("requested_rewrite", "target_new", "str"),
        ("requested_rewrite", "target_true", "str"),
    ],
    "counterfact-flat": [("target_new",), ("ground_truth",), ("locality_ground_truth",)],
    "knowedit": [("target_new",), ("ground_truth", 0)],
    "mquake": [
        ("requested_rewrite", 0, "target_new", "str"),
        ("requested_rewrite", 0, "target_true", "str"),
    ],
    "zsre": [("alt",), ("answers", 0), ("loc_ans",)],
    "easyedit": [("target_new",), ("locality_ground_truth",)],
    "wikibigedit": [("ans",)],
    "ultraeditbench": [("ans",)],
}
TOGETHER = {"known"}  # forms whose records say only together what to write


def changed(record, path, value):
    """Return a deep copy of the record with the value at the path replaced."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def write(path, records) -> str:
    """Write records as JSON, or as JSON lines where the suffix says so."""
    if path.suffix.lower() == ".jsonl":
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        text = "\n".join([*lines, "", ""])  # an empty line at the end is no record
    else:
        text = json.dumps(records, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return str(path)
