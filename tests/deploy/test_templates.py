"""Our part of Go's templates says what Go's says."""

from __future__ import annotations

import pytest

from tests.deploy.templates import rendered

ABOUT = {"Values": {"count": 3, "name": "a", "none": "", "words": ["x", "y"]}}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ .Values.name }}-{{ .Values.name | quote }}", 'a-"a"'),
        ("{{ add .Values.count 2 }} {{ div (mul .Values.count 9) 10 }}", "5 2"),
        (
            "{{ range $i := until (int .Values.count) }}{{ if $i }},{{ end }}{{ $i }}{{ end }}",
            "0,1,2",
        ),
        ("a:\n  {{- if .Values.none }}\n  b\n  {{- end }}\n  c", "a:\n  c"),
        ("a:\n{{- range $w := .Values.words }}\n- {{ $w }}\n{{- end }}\n", "a:\n- x\n- y\n"),
        ("{{ range $w := .Values.words }}{{ $.Values.count }}{{ end }}", "33"),
    ],
)
def test_it_renders(template: str, text: str) -> None:
    assert rendered(template, ABOUT) == text


@pytest.mark.parametrize("template", ["{{ include }}", "{{ .Values.other }}", "{{ end }}"])
def test_what_it_does_not_know_is_no_text(template: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        rendered(template, ABOUT)
