"""Lines that hold no personal data and look as if they did: code, logs, versions, ids, figures, citations.

What detectors touch here is a false alarm. The lines are made from templates of ours, with numbers drawn by a seed.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Iterator

Draw = Callable[[random.Random], str]


def _digits(least: int, most: int | None = None) -> Draw:
    def draw(rng: random.Random) -> str:
        size = rng.randint(least, most or least)
        return rng.choice("123456789") + "".join(rng.choices(string.digits, k=size - 1))

    return draw


def _hex(size: int) -> Draw:
    return lambda rng: "".join(rng.choices("0123456789abcdef", k=size))


def _below(end: int, width: int = 1) -> Draw:
    return lambda rng: f"{rng.randrange(end):0{width}d}"


def _one_of(words: str) -> Draw:
    choices = words.split()
    return lambda rng: rng.choice(choices)


def _version(parts: int) -> Draw:
    return lambda rng: ".".join(str(rng.randint(0, 60)) for _ in range(parts))


def _date(rng: random.Random) -> str:
    return f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _time(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}"


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _base64(size: int) -> Draw:
    return lambda rng: "".join(rng.choices(string.ascii_letters + string.digits + "+/", k=size))


DRAWS: dict[str, Draw] = {
    "n1": _digits(1), "n2": _digits(2), "n3": _digits(3), "n4": _digits(4), "n5": _digits(5), "n6": _digits(6),
    "n7": _digits(7), "n8": _digits(8), "n9": _digits(9), "n10": _digits(10), "n12": _digits(12),
    "small": _below(100), "two": _below(60, 2), "ms": _below(1000, 3), "us": _below(1000000, 6),
    "hex7": _hex(7), "hex8": _hex(8), "hex12": _hex(12), "hex32": _hex(32), "hex40": _hex(40), "hex64": _hex(64),
    "h2": _hex(2), "h4": _hex(4), "b64": _base64(40), "v2": _version(2), "v3": _version(3), "v4": _version(4),
    "date": _date, "time": _time, "uuid": _uuid, "stamp": lambda rng: f"17{rng.randrange(10**8):08d}",
    "millis": lambda rng: f"17{rng.randrange(10**11):011d}", "float": lambda rng: f"{rng.uniform(0, 100):.6f}",
    "tag": lambda rng: f"20{rng.randint(20, 27)}{rng.randint(1, 12):02d}",
    "year": lambda rng: str(rng.randint(1950, 2030)),
    "word": _one_of("user order node batch token shard cache index queue route model layer worker replica bucket"),
    "ns": _one_of("db ad cafe ab bed dead face fade dab beef ace add cab fab deaf"),
    "fn": _one_of("add feed get set bed cd fade decode dec cede abba"),
    "unit": _one_of("ms s MB GB tokens rows steps bytes requests px"),
    "lib": _one_of("numpy torch requests flask django react lodash serde tokio boost openssl zlib"),
    "level": _one_of("INFO WARN DEBUG ERROR TRACE"),
    "host": _one_of("web worker db cache api edge node"),
}  # fmt: skip

TEMPLATES = r"""
{ns}::{fn}(user);
std::vector<int> v = {ns}::{fn}({n2}, {n3});
auto it = {ns}::{ns}::{fn}();
use {ns}::{fn};
pub fn {fn}(a: u{n2}) -> {ns}::Result<{ns}::{fn}> {{
{ns}::{fn}::<{word}>(&x[{small}..])
#include <{ns}/{fn}.h>  // since {v3}
if ({word}_count > {n7}) return {n8};
const MAX_{word} = {n9};
let {word}_{n3} = {n4} * {n4} + {n5};
assert {word}[{n2}] == {float}
x = [{n3}, {n3}, {n4}, {n2}, {n5}, {n3}]
for i in range({n4}, {n6}, {n3}):
{word} = {word}s[{small}]
token = tokens[{n1}]
password = get_password(user_{n1})
secret = os.environ["SECRET_{n1}"]
api_key = config.keys[{n1}].value
key=lambda item: item[{n1}]
return self._{word}({n5}, timeout={n3})
SELECT * FROM {word}s WHERE id = {n8} LIMIT {n3};
INSERT INTO {word} VALUES ({n4}, {n7}, {float}, '{date}');
UPDATE {word} SET n = {n6} WHERE k BETWEEN {n5} AND {n6};
0x{hex8}: {h4} {h4} {h4} {h4} {h4} {h4}
{h2} {h2} {h2} {h2} {h2} {h2} {h2} {h2}  |{word}|
mov eax, 0x{hex8} ; {n5}
color: #{h2}{h2}{h2}; margin: {small}px {small}px;
@media (min-width: {n4}px) and (max-width: {n4}px)
background: url(logo@2x.png) {n3}px {n3}px;
@pytest.mark.parametrize("n", [{n3}, {n4}])
git commit {hex40}
{hex7} Merge pull request #{n4} from {word}/{word}-{n2}
index {hex7}..{hex7} 100644
@@ -{n3},{small} +{n3},{small} @@ def {fn}():
sha256:{hex64}
md5 = {hex32}
etag: "{hex32}-{n2}"
digest {b64}==
trace_id={hex32} span_id={hex12}
request_id={uuid}
id: {uuid}
run_id={tag}08-{n4}
run {tag}12-{n4} finished in {float} s
release {tag}08-{n4} is out
build {n6}-{n4} passed
https://ci.example.org/builds/{n6}-{n4}/logs
https://ci.example.org/job/{word}/{n5}/console
Order {n3}-{n3}-{n4} shipped
Order no. {n3}-{n7}-{n7}
order id {n10} is on its way
invoice {n4}-{n6} was paid on {date}
ticket #{n7} closed, see {n6}
Case {n2}-{n5} ({year})
tracking number {n12}
part no. {n3}-{n4}-{n3}
SKU {n3}-{n3}-{n4}
serial {n4}-{n4}-{n4}
article {n3} {n3} {n3}
ISBN 978-{n1}-{n3}-{n5}-{n1}
doi:10.{n4}/{word}.{year}.{n6}
arXiv:{tag}.{n5}
PMID {n8}
RFC {n4}, section {n1}.{n1}.{n2}
({year}) {n3}-{n3}
vol. {n2}, no. {n1}, pp. {n3}-{n4}, {year}
[{n2}] Proc. of the {n2}th Conf., {year}, pp. {n4}-{n4}
version {v4}
upgraded from {v4} to {v4}
{lib}=={v3}
{lib}>={v2},<{v2}
{lib}=={v4}
{lib}-{v4}-py3-none-any.whl
"{lib}": "^{v3}",
Chrome/{n3}.0.{n4}.{n2} Safari/{n3}.{n2}
image: registry/{word}:{v3}-{hex7}
FROM {word}:{v2}-slim-{tag}
driver {v4} (build {n5})
firmware v{v4}
kernel {v3}-{n2}-generic
{date} {time},{ms} {level} {word}: took {n4} {n4} ms
{date}T{time}.{us}Z {level} [{word}-{n2}] {n5} {unit} in {n4} ms
{date}T{time}+0200 {level} pid={n5} tid={n7}
[{date} {time}] {host}-{n2} {level}: offset {n9}, lag {n5}
{time}.{ms} {level} queue={n4} running={n3} waiting={n4}
{stamp} {word} {n5} {n6} {n7}
timestamp={millis} seq={n9}
{date},{n4},{n5},{n6},{float}
{n4}	{n6}	{n5}	{float}
| {word} | {n4} | {n5} | {float} |
{n3} {n3} {n3}
{n2} {n3} {n3} rows
Number of steps: {n2} {n3} {n3}
number of parameters: {n3} {n3} {n3}
total {n2} {n3} {n3} bytes
population {n1} {n3} {n3}
function call took {n4} {n4} ms
step {n6}/{n7} loss {float} lr {float}
epoch {n2}: {n5} {n5} {n5} {unit}
throughput {n6} {unit} per second at batch {n4}
p50 {n3} p95 {n4} p99 {n5} {unit}
shape ({n3}, {n4}, {n4})
resolution {n4}x{n4}, {n3} dpi
range {n5}-{n6}
from {n6} to {n7} in {n3} steps
port {n4}, pid {n5}, uid {n4}
listening on 0.0.0.0:{n4}
http://127.0.0.1:{n4}/v1/{word}s/{n5}
bound to [::1]:{n4}
netmask 255.255.255.0
PID {n5} killed, exit code {n3}
File "{word}.py", line {n4}, in {fn}
    at {word}.{fn}({word}.java:{n4})
panicked at src/{word}.rs:{n3}:{n2}
#{n1}  0x0000{hex12} in {fn} () from lib{word}.so.{n1}
Segmentation fault (core dumped) at 0x{hex12}
HTTP/1.1 {n3} content-length: {n7}
cache-control: max-age={n8}
"GET /{word}s/{n7}?page={n3} HTTP/1.1" 200 {n5}
systemctl restart {word}@tty{n1}.service
git clone git@github.com:{word}/{lib}.git
npm install {lib}@{v3}
uses: actions/checkout@v{n1}
def {fn}(self, {word}_id: int = {n8}) -> None:
temperature {float}, humidity {n2} %
{n2}° {n2}' {n2}" N, {n2}° {n2}' {n2}" E
lat={float}, lon=-{float}
pi is 3.14159265358979, e is 2.718281828{n4}
{n5} + {n6} = {n7}
{n4} * {n4} = {n8}
({n4} - {n3}) / {n2} = {float}
The answer is {n9}.
In {year}, {n3} {unit} were {n2} % of {n6}.
There were {n2}.{n3}.{n3} visitors in {year}.
EUR {n3}.{n3},{n2} for {n2} pieces
$ {n3},{n3}.{n2} in total
Q{n1} {year}: {n3},{n3} thousand
Rev. {n4}-{n2} ({date})
Die Bestellung {n3}-{n4} wurde am {date} versandt.
Es waren {n3} {n3} Zeilen in {n2} Dateien.
Le numéro de build est {n6}, la version {v3}.
La factura {n4}-{n5} tiene {n3} líneas.
订单 {n10} 已发货
版本 {v3} 于 {date} 发布
共 {n8} 行，用时 {n4} 毫秒
注文番号 {n3}-{n7}-{n7}
Заказ {n8} отправлен {date}
Строк: {n3} {n3}, время {n5} мс
unit {n2} of {n3}: chapter {n2}
Test Suite {n2} passed in {n4} ms
Unit {n1} tests: {n3} passed, {n2} failed
flat {n2} list, suite of {n3}
uses bearer authentication with {word} tokens
rk_{word}_step_{n1}_coefficients
sk-learn-{word}-contrib {v3}
max_tokens={n4}, top_p=0.{n2}, seed={n9}
"role": "user", "type": "function", "index": {n2}
\u{h4}\u{h4} is {word}
%{h2}%{h2}%{h2} in a path
data[{n3}:{n4}, {n2}] -> {n6}
CUDA_VISIBLE_DEVICES=0,1,2,3 python {word}.py --seed {n8}
{word}-{hex8}-{hex7} 1/1 Running {n2} {n3}d
arn:aws:s3:::{word}-{n4}-logs
s3://{word}-{tag}/{date}/part-{n5}.parquet
crc32 {hex8} adler {hex8}
license plate pattern [A-Z]{{{n1},{n2}}}-\d+
{n10} iterations, {n12} operations
level {n3}-{n4}: score {n7}
"""


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """So many lines, every template as often as any other."""
    rng = random.Random(seed)
    templates = [each for each in TEMPLATES.split("\n") if each]
    for number in range(count):
        yield templates[number % len(templates)].format_map(_Drawn(rng))


class _Drawn(dict[str, str]):
    """Draws anew whenever a name is asked for."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def __missing__(self, name: str) -> str:
        return DRAWS[name](self._rng)
