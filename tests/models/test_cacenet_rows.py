"""Every row of Tables 1 to 3 at the paper's size: shapes, and parameters by hand."""

import jax
import jax.numpy as jnp
import pytest

import configs.cacenet
from reid_jax import experiment
from reid_jax.models import cacenet
from reid_jax.models.method import parameter_count
from tests.models.headers import rows_of_header

CLASSES, D, E = 751, 2048, 768

TRUNK = 23_508_032
"""ResNet-50 without its classifier."""

ENCODER = D * E + 2 * E
"""1 x 1 convolution without bias, batch normalisation."""

CLASSIFIER = E * CLASSES

INDIVIDUAL = TRUNK + ENCODER + CLASSIFIER

GRAPH = D * D + ENCODER + CLASSIFIER
"""theta, and the conditional features' encoder and classifier."""

NON_LOCAL = sum(4 * c * (c // 16) + 3 * (c // 16) + c for c in (512, 1024, 2048))

# row: parameters beside those of the individual feature, arrays stored of an image
ALL = {"map", "own"}
ROWS = {
    "": (GRAPH + 2 * D, ALL),
    "table1-individual": (0, None),
    "table1-alignment": (D, {"map"}),
    "table1-individual-gcn": (GRAPH + D, {"feature"}),
    "table1-normal": (GRAPH + 2 * D, ALL),
    "table1-discrepancy": (GRAPH + 2 * D, ALL),
    "table2-none": (0, None),
    "table2-part": (GRAPH, {"map"}),
    "table2-similarity": (GRAPH, {"map"}),
    "table2-full": (GRAPH, {"map"}),
    "table2-semantic": (GRAPH, ALL | {"parts"}),
    "table2-correspondence": (GRAPH + 2 * D, ALL),
    "table3-cross-entropy": (GRAPH + 2 * D, ALL),
    "table3-0.95": (GRAPH + 2 * D, ALL),
    "table3-0.9": (GRAPH + 2 * D, ALL),
    "table3-0.8": (GRAPH + 2 * D, ALL),
    "table3-0.7": (GRAPH + 2 * D, ALL),
    "table3-0.6": (GRAPH + 2 * D, ALL),
    "attention-ones": (GRAPH + 2 * D, ALL),
    "attention-normal": (GRAPH + 2 * D, ALL),
    "attention-centred": (GRAPH + 2 * D, ALL),
    "attention-threshold": (GRAPH + 2 * D, ALL),
    "rerank-cosine": (GRAPH + 2 * D, ALL),
    "rerank-euclidean": (GRAPH + 2 * D, ALL),
}
SAME_AS_THE_PAPER = {
    *("table1-discrepancy", "table2-correspondence", "table3-0.9"),
    *("attention-ones", "rerank-euclidean"),
}


def traced(arg):
    """The method, its variables, loss, and stored maps, without computing any."""
    config = configs.cacenet.get_config(arg)
    method = experiment.build_method(config, num_classes=CLASSES)
    (stage,) = experiment.build_stages(config, method)
    batch = experiment.example_batch(config, stage.batch_size)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)

    def run(variables, batch):
        loss, _, collections = method.objective(
            variables, batch, rng=jax.random.key(0), epoch=0.0, stage="train"
        )
        scorer = method.pair_scorer("train")
        maps = scores = pictures = None
        if scorer is not None:
            parts = batch["parts"] if scorer.inputs else None
            maps = scorer.pair_maps(variables, batch["image"], None, parts)
            candidates = jax.tree.map(lambda x: x[None, :5], maps)
            query = jax.tree.map(lambda x: x[:1], maps)
            scores = scorer.score_pairs(variables, query, candidates)
            pictures = scorer.pictures(variables, query, candidates)
            pictures = {name: vars(item) for name, item in pictures.items()}
        return loss, collections, maps, scores, pictures

    return method, variables, jax.eval_shape(run, variables, batch)


def test_every_row_of_the_config_is_here():
    assert {*ROWS} == {"", *configs.cacenet.ROWS}
    assert {*configs.cacenet.LADDER} <= {*ROWS}


def test_the_header_lists_every_row_with_its_fields():
    assert rows_of_header(cacenet.__doc__) == configs.cacenet.ROWS


def test_rows_are_trained_on_what_the_paper_measures_them_on():
    get = configs.cacenet.get_config
    for row in configs.cacenet.ROWS:
        on_duke = row.startswith(("table1", "table2"))
        assert get(f"row={row}").data.dataset == (
            "dukemtmc" if on_duke else "market1501"
        )
    assert get("row=table1-normal,dataset=msmt17_noval").data.dataset == "msmt17_noval"
    assert get("demo,row=table1-normal").data.dataset == "synthetic/holistic_demo"


def test_rows_differ_but_for_the_papers_own():
    fields = {
        row: configs.cacenet.get_config(f"row={row}").model.to_json() for row in ROWS
    }
    for row in SAME_AS_THE_PAPER:
        assert fields.pop(row) == fields[""]
    assert fields.pop("table2-none") == fields["table1-individual"]
    assert len(set(fields.values())) == len(fields)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row not in (*SAME_AS_THE_PAPER, "table2-none")]
)
def test_row(row):
    further, stored = ROWS[row]
    method, variables, results = traced(f"row={row}")
    loss, collections, maps, scores, pictures = results
    assert parameter_count(variables) == INDIVIDUAL + further
    assert loss.shape == ()
    assert jax.tree.map(lambda x: x.shape, collections["batch_stats"]) == jax.tree.map(
        lambda x: x.shape, variables["batch_stats"]
    )
    assert (method.pair_scorer("train") is None) == (stored is None)
    if stored is None:
        return
    assert maps.keys() == stored
    assert scores.shape == (1, 5)
    assert {x.dtype for x in maps.values()} == {jnp.dtype("float16")}
    if "map" in stored:
        assert maps["map"].shape == (16, 24, 8, D)
        assert "correspondences" in pictures
    assert ("conditional" in pictures) == (
        "map" in stored and method.options.graph != "none"
    )


def test_the_authors_code_has_the_parameters_of_the_fact_sheet():
    method, variables, results = traced("mode=code")
    assert NON_LOCAL == 1_380_512
    graph = 3 * D * 128  # similarity, projection, expansion
    encoder = 2 * D * E + 2 * E  # of average and maximum, for all features
    assert TRUNK + NON_LOCAL + graph + encoder == 28_822_240
    assert parameter_count(variables) == 28_822_240 + 2 * 576_768
    assert results[0].shape == ()
    images = jax.ShapeDtypeStruct((3, 384, 128, 3), jnp.uint8)
    embedding = jax.eval_shape(method.embed, variables, images)
    assert embedding["vector"].shape == (3, E)
    assert method.pair_scorer("train").top_k == 100


def test_the_papers_numbers():
    config = configs.cacenet.get_config()
    assert (config.data.height, config.data.width) == (384, 128)
    train = config.stages.train
    assert (train.identities, train.images_per_identity, train.epochs) == (4, 4, 80)
    optimizer = train.optimizer
    assert optimizer.name == "sgd"
    assert (optimizer.learning_rate, optimizer.weight_decay) == (6.25e-3, 5e-4)
    assert (optimizer.warmup_epochs, optimizer.warmup_from) == (5, 0)
    assert optimizer.final_factor == 0
    assert config.augment.steps == ("flip", "pad_crop", "random_erasing")
    assert config.augment.random_erasing.p == 0.5
    assert config.model.alpha == 0.9


def test_no_candidates_switch_the_scorer_off():
    config = configs.cacenet.get_config("demo,scratch")
    config.model.top_k = 0
    method = experiment.build_method(config, num_classes=5)
    assert method.pair_scorer("train") is None
