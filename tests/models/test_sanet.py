import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.stats import spearmanr

from reid_jax import weights
from reid_jax.backbones.resnet import Stage
from reid_jax.errors import UserError
from reid_jax.layers.routing import Grid
from reid_jax.models import sanet
from reid_jax.models.sanet import PART_GROUPS, Enhancement, Options
from reid_jax.training import train
from tests.losses import test_focal, test_identity, test_visible_triplet
from tests.models.steps import training_step
from tests.variables import as_a_run_begins, random_variables
from tests.weights import state_dicts, torch_writer

SIZE, CLASSES = (64, 32), 4
TINY = {"width": 2, "blocks": (1, 1, 1, 1), "enhancement_width": 3, "mask_width": 3}
TINY |= {"layers": 2, "part_groups": ((1, 2), (3, 5)), "part_names": ("a", "b")}
FOUR = {"part_groups": PART_GROUPS, "part_names": sanet.PART_NAMES}


def make(**fields):
    return sanet.Method(CLASSES, SIZE, **TINY | fields)


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, *SIZE, 3), dtype=np.uint8),
        "parts": rng.integers(0, 9, (rows, *SIZE), dtype=np.uint8),
        "label": np.repeat(np.arange(CLASSES), rows // CLASSES).astype(np.int32),
    }


def variables_of(method, seed=0):
    return random_variables(method.init, batch(), seed=seed)


# Section 3.1 against loops in float64.

LAYERS, ROWS, CHANNELS = 4, 6, 5


def enhancement(layers=LAYERS, skip=True, **fields):
    options = Options(layers=layers, enhancement_width=4, **fields)
    return Enhancement(options, skip=skip)


def some_maps(rows=ROWS, seed=0):
    shape = (rows, 6, 5, CHANNELS)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def enhancement_variables(module, seed=0):
    return random_variables(
        functools.partial(module.init, train=False), some_maps(), seed=seed, scale=0.6
    )


def apply(module, train):
    def run(variables, maps):
        return module.apply(
            variables,
            maps,
            train=train,
            mutable=["batch_stats"],
            rngs={"gumbel": jax.random.key(7)},
        )[0]

    return run


@functools.cache
def enhance(module, train=False):
    return jax.jit(apply(module, train))


def convolved(x, kernel, stride=1):
    """[h, w, C] with zeros around."""
    side = kernel.shape[0]
    padded = np.pad(x, [(side // 2, side // 2)] * 2 + [(0, 0)])
    rows = range(0, x.shape[0], stride)
    columns = range(0, x.shape[1], stride)
    return np.array(
        [
            [
                np.einsum("ijc,ijcd->d", padded[r : r + side, c : c + side], kernel)
                for c in columns
            ]
            for r in rows
        ]
    )


def resized(x, size):
    """Bilinear in each direction, centres at halves, clamped at the border."""
    for axis, new in enumerate(size):
        old = x.shape[axis]
        centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(centres).astype(int)
        high = np.minimum(low + 1, old - 1)
        part = (centres - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def normed(x, params, stats, row_weights=None):
    """[B, ..., C]; by statistics of weighted rows where weights are given."""
    mean, var = stats["mean"], stats["var"]
    if row_weights is not None:
        flat = x.reshape(-1, x.shape[-1])
        each = np.repeat(row_weights, len(flat) // len(x))
        mean = np.average(flat, axis=0, weights=each)
        var = np.average((flat - mean) ** 2, axis=0, weights=each)
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def grid_by_loops(maps, variables, alpha, train):
    """Figure 3 with given scores; `alpha(layer, scale, logits)` is [B, exits]."""
    params, stats = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables[name])
        for name in ("params", "batch_stats")
    )
    count = len(maps)
    sizes = [(6, 5), (3, 3), (2, 2)]
    each = [convolved(m, params["reduce"]["kernel"]) for m in maps]
    start = normed(
        np.array(each),
        params["reduce_bn"],
        stats["reduce_bn"],
        np.ones(count) if train else None,
    ).clip(0)
    arriving, activity = {0: start}, {0: np.ones(count)}
    for layer in range(LAYERS):
        last, total = layer == LAYERS - 1, np.zeros(start.shape)
        new, shares = {}, {}
        for scale, f in arriving.items():
            cell = params[f"cell{layer + 1}_{scale + 1}"]
            each = np.array([convolved(x, cell["operation"]["kernel"]) for x in f])
            share = activity[scale]
            refined = normed(
                each,
                cell["norm"],
                stats[f"cell{layer + 1}_{scale + 1}"]["norm"],
                share if train else None,
            ).clip(0)
            for b in range(count) if last else ():
                total[b] += share[b] * resized(refined[b], sizes[0])
            if last:
                continue
            exits = [s for s in (scale - 1, scale, scale + 1) if 0 <= s < 3]
            logits = None
            if "gate" in cell:
                logits = np.array([convolved(x, cell["gate"]["kernel"]) for x in f])
                logits = (logits + cell["gate"]["bias"]).max((1, 2))
            if "gate_norm" in cell:
                of_batch = stats[f"cell{layer + 1}_{scale + 1}"]["gate_norm"]
                logits = normed(
                    logits, cell["gate_norm"], of_batch, share if train else None
                )
            scores = alpha(layer, scale, logits)
            for index, target in enumerate(exits):
                path = share * scores[:, index]
                shares[target] = shares.get(target, 0) + path
                for b in range(count):
                    if target > scale:
                        kernel = params[f"down{layer + 1}_{scale + 1}"]["kernel"]
                        moved = convolved(refined[b], kernel, 2)
                    else:
                        moved = resized(refined[b], sizes[target])
                    empty = np.zeros((count, *moved.shape))
                    new.setdefault(target, empty)[b] += path[b] * moved
        arriving, activity = new, shares
    expanded = [convolved(t, params["expand"]["kernel"]) for t in total]
    return maps + np.array(expanded)


def one_hot_of(layer, scale, logits):
    return np.eye(logits.shape[1])[logits.argmax(1)]


def even(layer, scale, logits):
    exits = 2 if scale in (0, 2) else 3
    return np.full((ROWS, exits), 1 / exits)


MODES = {
    "arg-max at test": ({}, False, one_hot_of),
    "normalised gates at test": ({"gate_norm": True}, False, one_hot_of),
    "normalised gates in training": ({"gate_norm": True}, True, None),
    "fixed at test": ({"enhancement": "fixed", "operation": 1}, False, even),
    "fixed in training": ({"enhancement": "fixed"}, True, even),
    "soft in training": ({"temperature": 0.7, "operation": 5}, True, None),
    "one-hot in training": ({"straight_through": True}, True, None),
}


@pytest.mark.parametrize("mode", MODES)
def test_enhancement_equals_loops(mode):
    fields, train, alpha = MODES[mode]
    module = enhancement(**fields)
    variables = enhancement_variables(module)
    run = enhance(module, train)
    found, routes = run(variables, some_maps())
    activity, paths = (np.asarray(routes[key]) for key in ("activity", "paths"))
    # Other images take other routes through the same program.
    programs = run._cache_size()
    _, other = run(variables, some_maps(seed=1))
    fixed = fields.get("enhancement") == "fixed"
    assert np.array_equal(other["activity"], activity, equal_nan=True) == fixed
    assert run._cache_size() == programs

    def drawn(layer, scale, logits):
        """The samples, as the routes tell them."""
        share = activity[:, layer, scale]
        out = paths[:, layer, scale]
        out = out[:, ~np.isnan(out[0])]
        return np.divide(
            out, share[:, None], out=np.zeros_like(out), where=share[:, None] > 0
        )

    expected = grid_by_loops(some_maps(), variables, alpha or drawn, train)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # A layer's activities are a distribution, one-hot where a single path is chosen.
    np.testing.assert_allclose(np.nansum(activity, 2), 1, rtol=1e-5)
    hard = bool(fields.get("straight_through")) or alpha is one_hot_of
    assert hard == (np.nanmax(activity, 2) == 1).all()
    if hard:
        assert len(np.unique(np.nan_to_num(activity).reshape(ROWS, -1), axis=0)) > 1


def idle_cells(activity, layers=LAYERS):
    return [
        (layer, scale)
        for layer in range(layers)
        for scale in Grid(layers).cells(layer)
        if (activity[:, layer, scale] == 0).all()
    ]


@pytest.mark.parametrize("train", [False, True])
def test_an_inactive_cell_contributes_exactly_nothing(train):
    """Also after its normalisation, whose bias makes something of zeros."""
    module = enhancement(straight_through=True)
    variables = jax.tree.map(np.copy, enhancement_variables(module))
    for gate in (v["gate"] for v in variables["params"].values() if "gate" in v):
        gate["bias"][-1] += 100  # always down, and keep at the smallest scale
    run = enhance(module, train)
    before, routes = run(variables, some_maps())
    idle = idle_cells(np.asarray(routes["activity"]))
    assert idle == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    changed = jax.tree.map(np.copy, variables)
    for layer, scale in idle:
        cell = changed["params"][f"cell{layer + 1}_{scale + 1}"]
        cell["norm"]["bias"] += 1e6
        cell["operation"]["kernel"] *= -3
        changed["batch_stats"][f"cell{layer + 1}_{scale + 1}"]["norm"]["mean"] -= 5
    after, _ = run(changed, some_maps())
    np.testing.assert_array_equal(after, before)


def test_an_idle_cell_keeps_its_statistics():
    module = enhancement(straight_through=True)
    variables = enhancement_variables(module)
    (_, routes), updated = jax.jit(
        functools.partial(
            module.apply,
            train=True,
            mutable=["batch_stats"],
            rngs={"gumbel": jax.random.key(7)},
        )
    )(variables, some_maps(1))
    idle = idle_cells(np.asarray(routes["activity"]))
    assert idle
    grid = Grid(LAYERS)
    for layer, scale in [(i, s) for i in range(LAYERS) for s in grid.cells(i)]:
        name = f"cell{layer + 1}_{scale + 1}"
        old = variables["batch_stats"][name]["norm"]
        new = updated["batch_stats"][name]["norm"]
        same = all(np.array_equal(old[key], new[key]) for key in old)
        assert same == ((layer, scale) in idle)


def test_one_image_skips_what_its_route_leaves_out_with_equal_results():
    module = enhancement()
    dense = enhancement(skip=False)
    variables = enhancement_variables(module)
    maps = some_maps()
    together, routes = enhance(module)(variables, maps)
    for row in range(ROWS):
        for single in (module, dense):
            alone, route = enhance(single)(variables, maps[row : row + 1])
            np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-5)
            for name in routes:
                np.testing.assert_array_equal(route[name][0], routes[name][row])

    def branches(module, rows, train=False):
        """Conditionals of the program: one for each cell, and each way down.

        Those between platforms are none of the program that is lowered for one.
        """
        run = functools.partial(apply(module, train), variables)
        text = str(jax.make_jaxpr(run)(maps[:rows]))
        return text.count(" cond[") - text.count("branches_platforms=((")

    assert branches(module, 1) == 9 + 5
    assert branches(module, 2) == branches(dense, 1) == 0
    assert branches(module, 1, train=True) == 0


def test_gates_learn_through_soft_samples_and_straight_through():
    maps = some_maps()
    for straight_through in (False, True):
        module = enhancement(2, straight_through=straight_through)
        variables = enhancement_variables(module)

        def loss(params, module=module, variables=variables):
            given = {**variables, "params": params}
            return jnp.square(apply(module, True)(given, maps)[0]).mean()

        gradients = jax.jit(jax.grad(loss))(variables["params"])
        for name, cell in gradients.items():
            if "gate" in cell:
                assert np.isfinite(cell["gate"]["kernel"]).all()
                # One-hot samples leave gates of idle cells without gradient.
                if not straight_through or name == "cell1_1":
                    assert np.abs(cell["gate"]["kernel"]).max() > 0


# Section 3.2.


def see_half(branch, mask_logits):
    """Shifts the masks [B, h, w] so that half of the images see the part."""
    branch["mask"]["conv2"]["bias"] -= np.median(np.asarray(mask_logits).max((1, 2)))


@pytest.mark.parametrize("binary", [False, True])
def test_mask_pooling_and_visibility_equal_loops(binary):
    options = Options(**TINY | {"width": 1}, binary_mask=binary)
    module = sanet.Branch(options, CLASSES)
    maps = np.random.default_rng(0).normal(size=(4, 3, 2, 5)).astype(np.float32)
    variables = random_variables(functools.partial(module.init, train=False), maps)
    run = jax.jit(functools.partial(module.apply, train=False))
    see_half(variables["params"], run(variables, maps)["mask_logits"])
    outputs = run(variables, maps)
    stage = {name: variables[name]["stage"] for name in variables}
    apply = functools.partial(Stage(blocks=1, width=8).apply, train=False)
    features = jax.jit(apply)(stage, maps)
    seen = []
    for image, logits in enumerate(np.asarray(outputs["mask_logits"], np.float64)):
        mask = 1 / (1 + np.exp(-logits))
        seen.append(bool((mask > 0.5).sum() >= 1))  # Eq. 5
        expected = np.full(32, -np.inf)
        for place in np.ndindex(3, 2):
            weight = float(mask[place] > 0.5) if binary else mask[place]
            product = weight * np.asarray(features[image][place], np.float64)
            expected = np.maximum(expected, product)  # Eq. 4
        np.testing.assert_allclose(outputs["before"][image], expected, rtol=1e-5)
    assert set(seen) == {True, False}
    np.testing.assert_array_equal(outputs["visible"], seen)


def test_branches_share_nothing():
    method = make(**FOUR)
    variables = variables_of(method)
    params = variables["params"]
    assert {f"branch{i}" for i in range(5)} == {n for n in params if "branch" in n}
    embed = jax.jit(method.embed)
    images = batch()["image"]
    before = np.asarray(embed(variables, images)["parts"])
    changed = jax.tree.map(np.copy, variables)
    stage = changed["params"]["branch2"]["stage"]["layer4_0"]
    stage["conv2"]["kernel"] *= -1
    after = np.asarray(embed(changed, images)["parts"])
    differs = np.abs(after - before).max((0, 2)) > 1e-4
    np.testing.assert_array_equal(differs, [False, False, True, False, False])


def test_unlabelled_places_and_images_are_left_out():
    method = make()
    logits = np.random.default_rng(0).normal(size=(8, 3, 4, 2)).astype(np.float32)
    parts = batch()["parts"]
    parts[3:] = 255
    parts[:3, :16] = 255  # the first row of the map
    loss = method._parsing_loss(logits, parts)
    kept = method._parsing_loss(logits[:3, :, 1:], parts[:3, 16:])
    np.testing.assert_allclose(loss, kept, rtol=1e-6)
    assert method._parsing_loss(logits, np.full_like(parts, 255)) == 0


# Section 3.3.

OBJECTIVES = {
    "text": {},
    "HPNet's": {"binary_mask": True, "identity": "visible", "triplet": "joint"}
    | {"enhancement": "none", "global_branch": False, "label_smoothing": 0.1}
    | {"focal_gamma": 1.0, "focal_alpha": 0.4},
}


def identity_by_loops(logits, labels, counts, smoothing):
    """The mean over images that count, [B, C] in float64."""
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = test_identity.soft_targets(labels, CLASSES, smoothing)
    losses = -(targets * logs).sum(1)
    return losses[counts].mean() if counts.any() else 0.0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_is_the_sum_of_its_equations(name):
    fields = OBJECTIVES[name]
    method = make(bn_groups=2, **fields)
    variables, data = variables_of(method), batch()
    data["parts"][2, 20:40] = 255
    forward = jax.jit(
        functools.partial(method.module.apply, train=True, mutable=["batch_stats"])
    )
    given = variables, method.standardise(data["image"])
    rngs = {"gumbel": jax.random.key(1)}
    params = variables["params"]
    see_half(params["branch0"], forward(*given, rngs=rngs)[0]["mask_logits"][:, 0])
    params["branch1"]["mask"]["conv2"]["bias"][:] = -9
    outputs, _ = forward(*given, rngs=rngs)
    objective = functools.partial(
        method.objective, rng=jax.random.key(1), epoch=0.0, stage="train"
    )
    loss, metrics, _ = jax.jit(objective)(variables, data)
    visible, labels = np.asarray(outputs["visible"]), data["label"]
    assert 0 < visible[:, 0].sum() < 8
    assert not visible[:, 1].any()
    branches = visible.shape[1]
    features = np.asarray(outputs["before"])
    identity = parsing = triplet = 0.0
    known = np.isin(data["parts"], (0, 1, 2, 3, 5))
    for k in range(branches):
        counts = visible[:, k] if fields else np.ones(8, bool)
        identity += identity_by_loops(
            outputs["logits"][:, k], labels, counts, fields.get("label_smoothing", 0)
        )
        triplet += triplet_by_loops(features[:, k : k + 1], visible[:, k : k + 1])
        classes = ((1, 2), (3, 5), (1, 2, 3, 5))[k]
        centres = np.ix_(range(8), range(8, 64, 16), range(8, 32, 16))
        parsing += test_focal.by_loops(
            np.asarray(outputs["mask_logits"])[:, k],
            np.isin(data["parts"], tuple(classes))[centres],
            known[centres],
            gamma=fields.get("focal_gamma", 2.0),
            alpha=fields.get("focal_alpha", 0.25),
        )
    if fields:
        triplet = triplet_by_loops(features, visible)
    np.testing.assert_allclose(metrics["loss_id"], identity, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_triplet"], triplet, rtol=1e-3)
    np.testing.assert_allclose(metrics["loss_parsing"], parsing, rtol=1e-4)
    np.testing.assert_allclose(loss, identity + 0.1 * triplet + parsing, rtol=1e-4)
    right = np.asarray(outputs["logits"]).argmax(2) == labels[:, None]
    np.testing.assert_allclose(metrics["accuracy"], right.mean(), rtol=1e-5)


def triplet_by_loops(features, visible):
    """`test_visible_triplet.by_loops` has three parts; the rest is never seen."""
    padded = np.zeros((8, max(3, features.shape[1]), features.shape[2]))
    padded[:, : features.shape[1]] = features
    seen = np.zeros(padded.shape[:2], bool)
    seen[:, : visible.shape[1]] = visible
    return test_visible_triplet.by_loops(padded, seen, batch()["label"])


PATHS = {
    "one-hot samples": {"straight_through": True, "last_stride": 2, "ibn": True},
    "fixed, half precision": {"enhancement": "fixed", "dtype": "bfloat16"}
    | {"mining_groups": 2},
}


@pytest.mark.parametrize("path", PATHS)
def test_training_step_is_finite(path):
    method = make(global_branch=False, **PATHS[path])
    data = batch()
    data["parts"][data["parts"] == 5] = data["parts"][data["parts"] == 3] = 0
    variables = variables_of(method)
    variables["params"]["branch1"]["mask"]["conv2"]["bias"][
        :
    ] = -9  # a part that is neither there nor seen
    (loss, (_, collections)), gradients = training_step(method)(
        variables, data, jax.random.key(0)
    )
    assert np.isfinite(loss)
    for leaf in jax.tree.leaves((gradients, collections)):
        assert np.isfinite(leaf).all()
    assert np.abs(gradients["enhancement"]["cell1_1"]["operation"]["kernel"]).max() > 0


def test_one_and_eight_devices_agree():
    method = make(part_groups=((1, 2),), part_names=("a",), global_branch=False)
    variables = as_a_run_begins(variables_of(method))
    data, rng = batch(16), jax.random.key(3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run = training_step(method)
    one = run(variables, data, rng)
    sharded = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    eight = run(replicated, sharded, rng)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        one[0],
        eight[0],
    )
    jax.tree.map(same_gradient, one[1], eight[1])


def same_gradient(one, other):
    """Entries far below the largest are what is left of sums that cancel."""
    scale = np.abs(one).max()
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * max(scale, 1))


def test_distance_equals_loops_over_common_branches():
    rng = np.random.default_rng(0)
    sides = []
    for rows in (4, 6):
        parts = rng.normal(size=(rows, 5, 3))
        parts /= np.linalg.norm(parts, axis=2, keepdims=True)
        seen = (rng.random((rows, 5)) < 0.4).astype(np.float32)
        sides.append({"parts": parts.astype(np.float32), "visibility": seen})
    query, gallery = sides
    query["visibility"][2] = 0
    found = np.asarray(jax.jit(make().distance)(query, gallery))
    for q, g in np.ndindex(4, 6):
        common = [
            k
            for k in range(5)
            if query["visibility"][q, k] and gallery["visibility"][g, k]
        ]
        expected = 2.0
        if common:  # Eq. 7
            gaps = query["parts"][q].astype(np.float64) - gallery["parts"][g]
            expected = np.mean([np.linalg.norm(gaps[k]) for k in common])
        np.testing.assert_allclose(found[q, g], expected, atol=1e-5)
    assert (found[2] == 2).all()
    assert found.dtype == np.float32


@pytest.mark.parametrize("feature", ["after", "before"])
def test_embedding_rows_are_independent_unit_parts(feature):
    method = make(feature=feature)
    variables, images = variables_of(method), batch()["image"]
    for index in range(3):
        bias = variables["params"][f"branch{index}"]["mask"]["conv2"]["bias"]
        bias[:] = (-9, 9, 9)[index]
    embed = jax.jit(method.embed)
    embedding = embed(variables, images)
    assert embedding["parts"].shape == (8, 3, 64)
    np.testing.assert_array_equal(embedding["visibility"], [[0, 1, 1]] * 8)
    np.testing.assert_allclose(np.linalg.norm(embedding["parts"], axis=2), 1, rtol=1e-5)
    outputs = jax.jit(functools.partial(method.module.apply, train=False))(
        variables, method.standardise(images)
    )
    expected = np.array(outputs[feature])
    expected /= np.linalg.norm(expected, axis=2, keepdims=True)
    np.testing.assert_allclose(embedding["parts"], expected, atol=1e-5)
    alone = embed(variables, images[5:6])
    for name in embedding:
        np.testing.assert_allclose(alone[name][0], embedding[name][5], atol=1e-5)


def test_fourth_stages_start_as_copies_of_the_pretrained_one(tmp_path):
    method = make()
    variables = variables_of(method)
    trunk = jax.eval_shape(
        functools.partial(sanet.ResNet(blocks=(1, 1, 1, 1), width=2).init, train=False),
        jax.random.key(0),
        jnp.zeros((1, *SIZE, 3)),
    )
    shapes = {}
    leaves, _ = jax.tree_util.tree_flatten_with_path(trunk)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    names |= {"mean": "running_mean", "var": "running_var"}
    for (_, *path), leaf in leaves:
        *modules, last = (key.key for key in path)
        modules = [m.replace("_0", ".0").replace("_1", ".1") for m in modules]
        shape = leaf.shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        shapes[".".join([*modules, names[last]])] = shape
    file = torch_writer.write(tmp_path / "resnet.pth", state_dicts.fill(shapes))
    loaded, report = weights.load_pretrained(
        variables, str(file), copies=method.pretrained_copies
    )
    assert report.unexpected == ()
    for name in report.missing:
        assert name.split("/")[1] == "enhancement" or "/stage/" not in name
    first = loaded["params"]["branch0"]["stage"]
    assert not np.array_equal(
        first["layer4_0"]["conv2"]["kernel"],
        variables["params"]["branch0"]["stage"]["layer4_0"]["conv2"]["kernel"],
    )
    for index in (1, 2):
        jax.tree.map(
            np.testing.assert_array_equal,
            first,
            loaded["params"][f"branch{index}"]["stage"],
        )


# Section 4.5.


def test_pictures():
    method = make(**FOUR)
    variables, data = variables_of(method), batch(4)
    pictures = method.pictures(variables, data)
    assert set(pictures) == {"routes", "relative_activation", "masks"}
    routes = pictures["routes"]
    assert routes.activity.shape == (4, 2, 3)
    assert routes.paths.shape == (4, 1, 3, 3)
    assert routes.scales == ("1", "1/2", "1/4")
    exists = np.array([[1, 0, 0], [1, 1, 0]], bool)
    np.testing.assert_array_equal(~np.isnan(routes.activity[0]), exists)
    activity = np.nan_to_num(routes.activity)
    inflow = np.nan_to_num(routes.paths).sum(2)
    np.testing.assert_array_equal(inflow, activity[:, 1:])
    masks, activation = pictures["masks"], pictures["relative_activation"]
    assert masks.titles == ("head", "upper body", "lower body", "feet", "whole body")
    assert masks.values.shape == (4, 5, 4, 2)
    assert activation.values.shape == (4, 7, 4, 2)
    assert len(activation.titles) == 7
    for maps in (masks, activation):
        assert 0 <= np.min(maps.values) <= np.max(maps.values) <= 1


def test_the_caption_of_routes_says_how_they_follow_scale():
    method, rng = make(**FOUR), np.random.default_rng(0)
    activity = rng.dirichlet([1, 1, 1], (6, 2)).astype(np.float32)
    routes = {"activity": activity, "paths": np.zeros((6, 1, 3, 3))}
    shown = [4, 4, 2, 1, 3, 2]
    parts = np.zeros((6, 8, 4), np.uint8)
    for image, count in enumerate(shown):
        for place, group in enumerate(PART_GROUPS[:count]):
            parts[image, place] = group[-1]
    coarse = (activity @ [0, 1, 2]).mean(1)
    expected = spearmanr(coarse, np.negative(shown)).statistic
    about = method._routes(routes, parts).about
    assert f"mean scale of the cells {coarse.mean():.2f} (0: all at 1" in about
    assert about.endswith(
        f"rank correlation with enlargement over these 6: {expected:.2f}"
    )
    assert "enlargement" not in method._routes(routes, None).about
    alike = {**routes, "activity": activity[:1].repeat(6, 0)}
    assert method._routes(alike, parts).about.endswith("over these 6: none")


def test_pictures_without_enhancement():
    method = make(enhancement="none", global_branch=False)
    pictures = method.pictures(variables_of(method), batch(4))
    assert set(pictures) == {"relative_activation", "masks"}
    assert pictures["relative_activation"].titles == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enhancement": "afe"}, "enhancement is one of"),
        ({"identity": "some"}, "identity is one of"),
        ({"triplet": "both"}, "triplet is one of"),
        ({"feature": "bn"}, "feature is one of"),
        ({"operation": 4}, "odd side"),
        ({"temperature": 0.0}, "more than 0"),
        ({"layers": 1}, "at least 2"),
        ({"mask_width": 0}, "mask_width=0: at least 1"),
        ({"blocks": (3, 4, 6)}, "four stages"),
        ({"part_names": ("head",)}, "names 1 parts"),
        ({"part_groups": (), "part_names": ()}, "at least one part"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


def test_a_run_is_evaluated_and_pictured(sanet_config, tmp_path, on_devices):
    on_devices(1)
    sanet_config.max_steps = 2
    sanet_config.stages.train.epochs = 1 / 3
    (entry,) = train.train_and_evaluate(sanet_config, str(tmp_path))
    assert entry["step"] == 2
    assert 0 <= entry["metrics"]["mAP"] <= 1
    pictures = {path.stem for path in (tmp_path / "pictures" / "tiny").glob("*.png")}
    drawn = {"ranking", "hardest", "easiest", "routes", "relative_activation", "masks"}
    answers = {"relative_activation_answers", "masks_answers"}
    assert pictures == drawn | answers
