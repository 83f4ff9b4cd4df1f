"""The policy of `policy_eval` in three languages, and random examples for it.

Twelve rules over metadata. The peers state the same thing: may this example reach the deepest band?
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

LICENSES = ["cc0", "cc_by", "mit", "apache", "cc_by_nc", "proprietary", "unknown"]
SOURCES = ["web", "licensed", "user", "synthetic", "internal"]
REGIONS = ["us", "eu", "uk", "br", "jp"]
PII = ["email", "ssn", "phone", "name"]
ORIGINS = ["restricted", *(f"site-{i}" for i in range(40))]

DECLARATIONS = """
examples {
  age_days    : integer 0..5000
  consent     : bool
  erasure     : bool
  license     : one of cc0, cc_by, mit, apache, cc_by_nc, proprietary, unknown
  minor       : bool
  origin      : string
  pii         : bool
  pii_kinds   : set of email, ssn, phone, name
  region      : one of us, eu, uk, br, jp
  score       : number 0..1
  sensitivity : integer 0..4
  source      : one of web, licensed, user, synthetic, internal
}
model { shallow = top 25%  middle = next 50%  deep = rest }
"""
RULES = """
depth open_licences { when license in [cc0, cc_by, mit, apache]      reach all }
depth by_consent    { when source == user and consent                reach all }
depth own_data      { when source in [synthetic, internal]           reach all }
suppress erased     { when erasure }
suppress minors     { when minor }
suppress no_consent { when pii and not consent }
suppress stale_eu   { when region == eu and age_days > 730 }
suppress ssn        { when pii_kinds contains ssn }
suppress sensitive  { when sensitivity >= 3 and score < 0.25 }
suppress unknown    { when license == unknown and source == web }
suppress restricted { when origin == "restricted" }
suppress low_score  { when score < 0.8  cap deep at 0 }
"""
DYNAMIC = """
retain repeated     { when source == web  at most 3 exposures }
curriculum opening  { before step 500  reach shallow }
"""
STATIC_POLICY = "policy static version 1\n" + DECLARATIONS + RULES
RUN_POLICY = "policy run version 1\n" + DECLARATIONS + RULES + DYNAMIC

CEDAR = """
permit(principal, action, resource) when { ["cc0","cc_by","mit","apache"].contains(context.license) };
permit(principal, action, resource) when { context.source == "user" && context.consent };
permit(principal, action, resource) when { ["synthetic","internal"].contains(context.source) };
forbid(principal, action, resource) when { context.erasure };
forbid(principal, action, resource) when { context.minor };
forbid(principal, action, resource) when { context.pii && !context.consent };
forbid(principal, action, resource) when { context.region == "eu" && context.age_days > 730 };
forbid(principal, action, resource) when { context.pii_kinds.contains("ssn") };
forbid(principal, action, resource) when { context.sensitivity >= 3 && context.score < 250000 };
forbid(principal, action, resource) when { context.license == "unknown" && context.source == "web" };
forbid(principal, action, resource) when { context.origin == "restricted" };
forbid(principal, action, resource) when { context.score < 800000 };
"""
CEL = (
    '(license in ["cc0","cc_by","mit","apache"] || (source == "user" && consent)'
    ' || source in ["synthetic","internal"])'
    ' && !(erasure || minor || (pii && !consent) || (region == "eu" && age_days > 730)'
    ' || "ssn" in pii_kinds || (sensitivity >= 3 && score < 250000)'
    ' || (license == "unknown" && source == "web")'
    ' || origin == "restricted" || score < 800000)'
)


def examples(rows: int) -> pa.Table:
    """Return random examples as an Arrow table with dictionary-encoded text, as Parquet writers store it."""
    draw = np.random.default_rng(7)

    def words(values: list[str], share: list[float] | None = None) -> pa.Array:
        codes = draw.choice(len(values), rows, p=share).astype(np.int8)
        return pa.DictionaryArray.from_arrays(codes, values)

    kinds = [[], ["email"], ["phone", "name"], ["ssn"], ["email", "name"]]
    lengths = np.array([len(k) for k in kinds])
    drawn = draw.choice(len(kinds), rows, p=[0.7, 0.1, 0.1, 0.03, 0.07])
    members = pa.array([PII.index(m) for k in kinds for m in k], pa.int8())
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in drawn]) if rows else np.empty(0, int)
    coded = pa.DictionaryArray.from_arrays(members.take(pa.array(flat)), PII)
    offsets = np.concatenate([[0], np.cumsum(lengths[drawn])]).astype(np.int32)
    return pa.table(
        {
            "age_days": draw.integers(0, 1500, rows).astype(np.int32),
            "consent": draw.random(rows) < 0.8,
            "erasure": draw.random(rows) < 0.05,
            "license": words(LICENSES),
            "minor": draw.random(rows) < 0.03,
            "origin": words(ORIGINS),
            "pii": draw.random(rows) < 0.1,
            "pii_kinds": pa.ListArray.from_arrays(offsets, coded.cast(pa.string())),
            "region": words(REGIONS),
            "score": np.round(draw.random(rows), 6),
            "sensitivity": draw.integers(0, 5, rows).astype(np.int8),
            "source": words(SOURCES),
        }
    )
