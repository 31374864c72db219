// What the drivers for Node have in common; see contract.py.
import { readFileSync } from "node:fs";

export const STEPS = ["list", "chat", "stream", "tools", "structured", "400", "401", "404", "429", "cancelled"];
export const QUESTION = "What does the parcel of mara.lindqvist@example.org weigh?";
export const SYSTEM = "You weigh parcels.";
export const [WRONG_KEY, NOBODY, SHORT, LONG] = ["key-of-nobody-here", "nobody", 8, 6000];
export const PARAMETERS = {
  type: "object",
  properties: { size: { type: "string", enum: ["small", "large"] } },
  required: ["size"],
  additionalProperties: false,
};

export function check(held, said = "") {
  if (!held) throw new Error(`wrong: ${JSON.stringify(said)?.slice(0, 500)}`);
}

export async function refused(status, ask, tries = 1) {
  for (let at = 0; at < tries; at++) {
    try {
      await ask();
    } catch (error) {
      const found = [];
      for (let one = error; one && found.length < 8; one = one.cause ?? one.lastError) {
        found.push(one.statusCode ?? one.status);
      }
      check(found.includes(status), { found, wanted: status, error: String(error) });
      return;
    }
  }
  throw new Error(`nothing was refused with ${status}`);
}

function versionOf(name) {
  // A package need not export its package.json, so it is read where npm has put it.
  return JSON.parse(readFileSync(`${process.env.DRIVEN_MODULES}/${name}/package.json`, "utf-8")).version;
}

export async function drive(packages, steps, cannot = {}) {
  const told = JSON.parse(readFileSync(0, "utf-8"));
  const place = { ...told, v1: `${told.url}/v1`, full: { ...told.full, v1: `${told.full.url}/v1` } };
  const named = [...Object.keys(steps), ...Object.keys(cannot)].sort();
  check(JSON.stringify(named) === JSON.stringify([...STEPS].sort()), named);
  const found = {};
  for (const name of STEPS.filter((one) => one in steps)) {
    try {
      await steps[name](place);
      found[name] = true;
    } catch (error) {
      found[name] = String(error?.stack ?? error).slice(0, 3000);
    }
  }
  const versions = Object.fromEntries(packages.map((name) => [name, versionOf(name)]));
  console.log("\n" + JSON.stringify({ versions, steps: found, cannot }));
  process.exit(0); // sockets that are kept alive would keep the process
}
