import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.concurrent.Executors;

/** Posts each line of its input to API_URL, and prints the status or what went wrong. */
final class Demo {
    private static final AutopayClient CLIENT =
        new AutopayClient(System.getenv("AUTOPAY_PATH"), System.getenv("AUTOPAY_ROTATE_PATH"));

    public static void main(String[] args) throws IOException {
        var threads = Executors.newCachedThreadPool();
        var input = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = input.readLine()) != null;) {
            String body = line;
            threads.submit(() -> System.out.println(post(body)));
        }
        threads.shutdown();
    }

    private static String post(String body) {
        var request = HttpRequest.newBuilder(URI.create(System.getenv("API_URL"))).POST(BodyPublishers.ofString(body)).build();
        try {
            return String.valueOf(CLIENT.send(request, BodyHandlers.discarding()).statusCode());
        } catch (IOException | InterruptedException e) {
            return e.getMessage().replaceAll("\\s+", " ");
        }
    }
}
