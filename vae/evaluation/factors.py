"""How well a representation keeps apart the factors that images were made from: MIG, modularity, SAP, DCI.

Pure functions of arrays: a representation (N, D), say posterior means, and factors (N, F), whole numbers from 0.
Locatello et al. (2019) compare these scores and describe the estimates used here.
"""

import numpy as np

from vae.evaluation.metrics import Array

BINS = 20  # of each latent, equally wide, as in Locatello et al. 2019
TREES = 10


def mutual_information(mu: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """(N, D) and (N, F) -> nats (D, F), of latents cut into 20 bins."""
    from sklearn.metrics import mutual_info_score

    cut = [np.digitize(z, np.histogram_bin_edges(z, BINS)[1:-1]) for z in mu.T]
    return np.array([[mutual_info_score(z, v) for v in factors.T] for z in cut])


def entropies(factors: np.ndarray) -> np.ndarray:
    """(N, F) -> nats (F,)."""
    shares = [np.unique(v, return_counts=True)[1] / len(v) for v in factors.T]
    return np.array([-(p * np.log(p)).sum() for p in shares])


def mig(information: np.ndarray, entropy: np.ndarray) -> float:
    """Mutual information gap (Chen et al. 2018, eq. 6): how much more of a factor its best latent knows than the second
    best, as a share of the factor's entropy, averaged over factors; 1 at best.
    """
    return float((_gap(information) / entropy).mean())


def _gap(scores: np.ndarray) -> np.ndarray:
    """(D, F) -> (F,): the best latent's score less the second best's, which is 0 where there is one latent."""
    ordered = np.sort(np.vstack([scores, np.zeros(scores.shape[1])]), axis=0)
    return ordered[-1] - ordered[-2]


def modularity(information: np.ndarray) -> float:
    """How far each latent knows of one factor only (Ridgeway and Mozer 2018, section 3), averaged over latents.

    1 at best. A latent that knows of none counts 0, as in Locatello et al. 2019.
    """
    squares = information**2
    most = squares.max(1)
    rest = (squares.sum(1) - most) / np.maximum(most, 1e-12) / (information.shape[1] - 1)
    return float(np.where(most > 0, 1 - rest, 0).mean())


def sap(
    train_mu: np.ndarray, train_factors: np.ndarray, mu: np.ndarray, factors: np.ndarray, ordered: list[bool]
) -> float:
    """Separated attribute predictability (Kumar et al. 2018, section 3): the gap between the two latents that predict a
    factor best, each alone and linearly, averaged over factors.

    Of ordered factors by the squared correlation, of others by a linear classifier's balanced accuracy.
    """
    scores = np.zeros((mu.shape[1], factors.shape[1]))
    for k, is_ordered in enumerate(ordered):
        for d in range(mu.shape[1]):
            z, v = mu[:, d], factors[:, k]
            if is_ordered:
                scores[d, k] = np.corrcoef(z, v)[0, 1] ** 2 if z.std() > 0 else 0.0
            else:
                scores[d, k] = _accuracy(train_mu[:, [d]], train_factors[:, k], mu[:, [d]], v)
    return float(_gap(scores).mean())


def _accuracy(train_z: np.ndarray, train_v: np.ndarray, z: np.ndarray, v: np.ndarray) -> float:
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(C=0.01, class_weight="balanced", dual=False).fit(train_z, train_v)
    return float(balanced_accuracy_score(v, classifier.predict(z)))


def dci(
    train_mu: np.ndarray, train_factors: np.ndarray, mu: np.ndarray, factors: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Disentanglement, completeness and informativeness (Eastwood and Williams 2018, section 2); each 1 at best.

    Random forests predict the factors; their importances say which latent serves which factor. Disentanglement: a
    latent serves one factor; completeness: a factor is served by one latent; informativeness: the accuracy on `mu`.
    """
    from sklearn.ensemble import RandomForestClassifier

    importance, accuracy = np.zeros((mu.shape[1], factors.shape[1])), []
    for k in range(factors.shape[1]):
        forest = RandomForestClassifier(TREES, max_features=None, min_samples_leaf=5, random_state=seed)
        forest.fit(train_mu, train_factors[:, k])
        importance[:, k] = forest.feature_importances_
        accuracy.append(forest.score(mu, factors[:, k]))
    latent_weight = importance.sum(1) / max(importance.sum(), 1e-12)
    disentanglement = (latent_weight * _concentration(importance)).sum()
    return float(disentanglement), float(_concentration(importance.T).mean()), float(np.mean(accuracy))


def _concentration(rows: np.ndarray) -> np.ndarray:
    """(R, C) -> (R,): 1 less the entropy of each row's shares, to the base of their number; 0 for a row of zeros."""
    if rows.shape[1] == 1:
        return np.ones(len(rows))
    shares = rows / np.maximum(rows.sum(1, keepdims=True), 1e-12)
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1) / np.log(rows.shape[1])
    return np.where(rows.sum(1) > 0, 1 - entropy, 0)


def factor_scores(
    train_mu: Array, train_factors: Array, mu: Array, factors: Array, ordered: list[bool]
) -> dict[str, float]:
    """All scores of a representation mu (N, D) for its factors (N, F); classifiers are fitted to train_mu (M, D).

    Factors of one value are left out; at least two must vary, or there is nothing to keep apart.
    """
    known = [np.asarray(a) for a in (train_mu, train_factors, mu, factors)]
    vary = [k for k in range(known[3].shape[1]) if len(np.unique(known[3][:, k])) > 1]
    if len(vary) < 2:
        return {}
    fitted = known[0].astype(np.float64), known[1][:, vary], known[2].astype(np.float64), known[3][:, vary]
    information = mutual_information(*fitted[2:])
    scores = {
        "mig": mig(information, entropies(fitted[3])),
        "modularity": modularity(information),
        "sap": sap(*fitted, [ordered[k] for k in vary]),
    }
    names = ("dci_disentanglement", "dci_completeness", "dci_informativeness")
    return scores | dict(zip(names, dci(*fitted), strict=True))
