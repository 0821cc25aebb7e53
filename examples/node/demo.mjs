// Posts each line of its input to API_URL, and prints the status or what went wrong.
import { createInterface } from 'node:readline';

import { authorize } from './autopay.mjs';

const { API_URL, AUTOPAY_PATH, AUTOPAY_ROTATE_PATH } = process.env;
const autopayFetch = authorize({ path: AUTOPAY_PATH, rotatePath: AUTOPAY_ROTATE_PATH });

createInterface({ input: process.stdin }).on('line', async (body) => {
  try {
    console.log((await autopayFetch(API_URL, { method: 'POST', body })).status);
  } catch (error) {
    console.log(error.message.replace(/\s+/g, ' '));
  }
});
