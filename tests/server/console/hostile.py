"""Texts with which somebody might try to make a page of answers do something."""

from __future__ import annotations

from itertools import product

_RUN = "window.ran=1"
_ELEMENTS = [
    f"<script>{_RUN}</script>",
    f"<img src=x onerror={_RUN}>",
    f"<svg onload={_RUN}>",
    f"<svg><script>{_RUN}</script></svg>",
    f"<math><mtext><style><img src=x onerror={_RUN}></style></mtext></math>",
    f"<body onload={_RUN}>",
    f"<iframe srcdoc='<script>parent.{_RUN}</script>'></iframe>",
    f"<iframe src=javascript:{_RUN}></iframe>",
    f"<object data='data:text/html,<script>{_RUN}</script>'></object>",
    "<embed src='data:image/svg+xml,<svg/>'>",
    f"<details open ontoggle={_RUN}>x</details>",
    f"<video><source onerror={_RUN}></video>",
    f"<input autofocus onfocus={_RUN}>",
    f"<a href='javascript:{_RUN}'>x</a>",
    f"<form action='javascript:{_RUN}'><button>x</button></form>",
    "<base href='http://127.0.0.1:9/'>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    "<style>body{background:url(http://127.0.0.1:9/x)}</style>",
    f"<template><script>{_RUN}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={_RUN}>'>",
    f"<!--><script>{_RUN}</script>-->",
    f"<![CDATA[><script>{_RUN}</script>]]>",
    f"<?php ?><script>{_RUN}</script>",
    f"<x onclick={_RUN} tabindex=0 autofocus onfocus={_RUN}>x</x>",
]
_WRAPPED = ["{}", "`` {} ", "> {}", "- {}", "```html\n{}\n", "|a|\n|-|\n|{}|"]
_SCHEMES = [
    f"javascript:{_RUN}",
    f"JaVaScRiPt:{_RUN}",
    f"java\tscript:{_RUN}",
    f"&#106;avascript:{_RUN}",
    f"javascript&colon;{_RUN}",
    f"\\javascript:{_RUN}",
    f"vbscript:{_RUN}",
    f"data:text/html,<script>{_RUN}</script>",
    f"data:image/svg+xml,<svg onload={_RUN}>",
    "blob:null/x",
    "//127.0.0.1:9/x",
    "/console/api/now",
]
_PLACES = [
    "[x]({})",
    "![x]({})",
    "[x](<{}>)",
    "<{}>",
    '[x](http://a "{}")',
    "[x][y]\n\n[y]: {}",
    "[![x]({})](http://a)",
]
_ODD = [
    '[x](http://a"onmouseover="window.ran=1)',
    "[x](http://a'onmouseover='window.ran=1)",
    '![x" onerror="window.ran=1](http://a)',
    '```x" onclick="window.ran=1\na\n```',
    "```<script>window.ran=1</script>\na\n```",
    '~~~ "><img src=x onerror=window.ran=1>\na\n~~~',
    '|<img src=x onerror=window.ran=1>|\n|:-:" onclick=window.ran=1|\n|x|',
    "</code></pre></div><script>window.ran=1</script>",
    "```\n</code></pre><script>window.ran=1</script>\n```",
    "[constructor]: http://a\n\n[constructor][__proto__]",
    "\u2028<script>window.ran=1</script>\u2029",
    "<scr\u0000ipt>window.ran=1</scr\u0000ipt>",
    "\u202e<script>window.ran=1</script>",
    "&lt;script&gt;window.ran=1&lt;/script&gt;",
    "1" * 400 + ". x",
]

TEXTS = [
    *(wrap.format(element) for element, wrap in product(_ELEMENTS, _WRAPPED)),
    *(place.format(scheme) for scheme, place in product(_SCHEMES, _PLACES)),
    *_ODD,
]
