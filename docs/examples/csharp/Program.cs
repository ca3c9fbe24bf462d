// Lists what was rejected, follows the stream of results, and records a decision, over Flawline's HTTP API.
//
//   dotnet run -- https://host.plant.local:8765 robot.token
//
// The token is made on the host: flawline host user token host.toml robot --scope review --token-file robot.token
// Classes are named as in openapi.json; a class needs only the fields that a program uses.

using System;
using System.Collections.Generic;
using System.IO;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Threading;
using System.Threading.Tasks;

namespace FlawlineExample
{
    public class Part
    {
        [JsonPropertyName("id")] public long Id { get; set; }
        [JsonPropertyName("edge_id")] public string EdgeId { get; set; }
        [JsonPropertyName("part_id")] public string PartId { get; set; }
        [JsonPropertyName("line")] public string Line { get; set; }
        [JsonPropertyName("verdict")] public string Verdict { get; set; }
        [JsonPropertyName("reason")] public string Reason { get; set; }
        [JsonPropertyName("score")] public double? Score { get; set; }
        [JsonPropertyName("serial")] public string Serial { get; set; }
        [JsonPropertyName("time")] public string Time { get; set; }
    }

    public class Image
    {
        [JsonPropertyName("role")] public string Role { get; set; }
        [JsonPropertyName("codec")] public string Codec { get; set; }
        [JsonPropertyName("url")] public string Url { get; set; }
    }

    public class PartDetail : Part
    {
        [JsonPropertyName("images")] public List<Image> Images { get; set; }
    }

    public class Page_Part_
    {
        [JsonPropertyName("items")] public List<Part> Items { get; set; }
        [JsonPropertyName("next")] public long? Next { get; set; }
    }

    public class VerdictBody
    {
        [JsonPropertyName("decision")] public string Decision { get; set; }
    }

    public class Decided
    {
        [JsonPropertyName("review")] public long Review { get; set; }
    }

    public class Problem
    {
        [JsonPropertyName("error")] public string Error { get; set; }
    }

    public static class Program
    {
        private static HttpClient host;

        public static async Task<int> Main(string[] words)
        {
            if (words.Length != 2)
            {
                Console.Error.WriteLine("usage: dotnet run -- HOST TOKEN-FILE");
                return 2;
            }
            host = new HttpClient { BaseAddress = new Uri(words[0]), Timeout = Timeout.InfiniteTimeSpan };
            string token = File.ReadAllText(words[1]).Trim();
            host.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
            foreach (Part part in await Rejected(DateTime.UtcNow.AddHours(-8)))
            {
                Console.WriteLine("{0} {1} {2}: {3}", part.Time, part.Line, part.PartId, part.Reason);
            }
            await Follow();
            return 0;
        }

        // Page by page until `next` is null.
        private static async Task<List<Part>> Rejected(DateTime since)
        {
            var found = new List<Part>();
            long? after = 0;
            while (after != null)
            {
                string query = "?verdict=REJECT&limit=500&after=" + after + "&since=" + since.ToString("yyyy-MM-ddTHH:mm:ssZ");
                Page_Part_ page = await Get<Page_Part_>("/api/v1/parts" + query);
                found.AddRange(page.Items);
                after = page.Next;
            }
            return found;
        }

        // Goes on behind the last event after every break of the connection; a part comes once.
        private static async Task Follow()
        {
            string last = null;
            while (true)
            {
                try
                {
                    last = await FollowOnce(last);
                }
                catch (Exception error) when (error is HttpRequestException || error is IOException)
                {
                    Console.Error.WriteLine(error.Message);
                }
                await Task.Delay(TimeSpan.FromSeconds(2));
            }
        }

        private static async Task<string> FollowOnce(string last)
        {
            var request = new HttpRequestMessage(HttpMethod.Get, "/api/v1/stream");
            if (last != null)
            {
                request.Headers.Add("Last-Event-ID", last);
            }
            using (HttpResponseMessage answer = await host.SendAsync(request, HttpCompletionOption.ResponseHeadersRead))
            {
                await Check(answer);
                var reader = new StreamReader(await answer.Content.ReadAsStreamAsync());
                string name = null, line;
                try
                {
                    while ((line = await reader.ReadLineAsync()) != null)
                    {
                        if (line.StartsWith("id: ")) last = line.Substring(4);
                        if (line.StartsWith("event: ")) name = line.Substring(7);
                        if (line.StartsWith("data: ") && name == "result")
                        {
                            await Heard(JsonSerializer.Deserialize<Part>(line.Substring(6)));
                        }
                    }
                }
                catch (IOException)
                {
                    // The connection broke; what was heard before is behind `last`.
                }
            }
            return last;
        }

        private static async Task Heard(Part part)
        {
            Console.WriteLine("{0} {1}: {2}", part.Line, part.PartId, part.Verdict);
            if (part.Verdict != "REJECT" || part.Serial != "KNOWN-BAD")
            {
                return;
            }
            // Pictures come after the verdict, so that there may be none yet.
            PartDetail detail = await Get<PartDetail>("/api/v1/parts/" + part.Id);
            foreach (Image image in detail.Images)
            {
                if (image.Role == "image")
                {
                    File.WriteAllBytes(part.Id + "." + image.Codec, await host.GetByteArrayAsync(image.Url));
                }
            }
            await Decide(part.Id, "defect");
        }

        private static async Task<long> Decide(long part, string decision)
        {
            string body = JsonSerializer.Serialize(new VerdictBody { Decision = decision });
            var content = new StringContent(body, Encoding.UTF8, "application/json");
            using (HttpResponseMessage answer = await host.PostAsync("/api/v1/parts/" + part + "/verdicts", content))
            {
                await Check(answer);
                return JsonSerializer.Deserialize<Decided>(await answer.Content.ReadAsStringAsync()).Review;
            }
        }

        private static async Task<T> Get<T>(string path)
        {
            using (HttpResponseMessage answer = await host.GetAsync(path))
            {
                await Check(answer);
                return JsonSerializer.Deserialize<T>(await answer.Content.ReadAsStringAsync());
            }
        }

        // Every mistake has one shape: a status and a sentence.
        private static async Task Check(HttpResponseMessage answer)
        {
            if (!answer.IsSuccessStatusCode)
            {
                string text = await answer.Content.ReadAsStringAsync();
                throw new HttpRequestException((int)answer.StatusCode + ": " + JsonSerializer.Deserialize<Problem>(text).Error);
            }
        }
    }
}
